"""Calls to bytes and back: what a workflow is started with, and the hash that tells one call from another."""

from __future__ import annotations

import hashlib
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import from_json

from edda.errors import PayloadError
from edda.history.codec import adapter_for, encode_json


def args_hash(args: tuple[Any, ...], kwargs: Mapping[str, Any], what: str) -> bytes:
    """16 bytes over the canonical JSON of a call's arguments."""
    return hashlib.blake2b(encode_json((args, kwargs), what), digest_size=16).digest()


def hints_of(func: Callable[..., Any]) -> dict[str, Any]:
    """The annotations with forward references resolved; those that cannot be resolved are left out."""
    try:
        return typing.get_type_hints(func)
    except Exception:  # noqa: BLE001, a name imported only for type checkers
        return {
            name: hint
            for name, hint in getattr(func, "__annotations__", {}).items()
            if not isinstance(hint, str)
        }


class Parameters:
    """The parameters of a workflow after ``ctx``: checks a start's arguments and rebuilds them from JSON."""

    def __init__(self, func: Callable[..., Any]) -> None:
        self._name = func.__name__
        hints = hints_of(func)
        parameters = list(inspect.signature(func).parameters.values())[1:]
        self._signature = inspect.Signature(parameters)
        self.names = tuple(p.name for p in parameters if p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY})
        self._open = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self._adapters: dict[str, TypeAdapter[Any]] = {}
        for name in self.names:
            adapter = adapter_for(hints.get(name, Any))
            if adapter is not None:
                self._adapters[name] = adapter
        self._model: type[BaseModel] | None = None
        if len(self.names) == 1:
            only = hints.get(self.names[0])
            if isinstance(only, type) and issubclass(only, BaseModel):
                self._model = only

    def encode(self, kwargs: Mapping[str, Any]) -> bytes:
        """The start's input. Raises TypeError for arguments that the workflow does not take."""
        try:
            self._signature.bind(**kwargs)
        except TypeError as error:
            if self._model is None or self.names[0] in kwargs:
                msg = f"workflow {self._name!r}: {error}; it takes {self._signature}"
                raise TypeError(msg) from None
            kwargs = {self.names[0]: self._flat(kwargs)}
        return encode_json(kwargs, f"arguments of workflow {self._name!r}")

    def _flat(self, kwargs: Mapping[str, Any]) -> BaseModel:
        """A single model parameter also accepts the model's own fields."""
        assert self._model is not None  # noqa: S101, the caller has looked
        try:
            return self._model.model_validate(kwargs)
        except ValidationError as error:
            msg = f"workflow {self._name!r}: {error}"
            raise TypeError(msg) from error

    def decode(self, payload: bytes) -> dict[str, Any]:
        """The keyword arguments, rebuilt by annotation."""
        kwargs: dict[str, Any] = from_json(payload)
        for name, adapter in self._adapters.items():
            if name in kwargs:
                kwargs[name] = adapter.validate_python(kwargs[name])
        return kwargs

    def from_data(self, data: Any) -> dict[str, Any]:
        """Keyword arguments from an event's data: a JSON object gives those of its members that are parameters."""
        if not isinstance(data, dict):
            if len(self.names) == 1:
                adapter = self._adapters.get(self.names[0])
                return {self.names[0]: data if adapter is None else adapter.validate_python(data)}
            return {}
        if self._model is not None and self.names[0] not in data:
            return {self.names[0]: self._model.model_validate(data)}
        known = data if self._open else {name: value for name, value in data.items() if name in self.names}
        for name, adapter in self._adapters.items():
            if name in known:
                known[name] = adapter.validate_python(known[name])
        missing = [
            p.name
            for p in self._signature.parameters.values()
            if p.default is p.empty
            and p.name not in known
            and p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}
        ]
        if missing:
            msg = f"workflow {self._name!r}: the event's data lacks {', '.join(missing)}; it takes {self._signature}"
            raise PayloadError(msg)
        return known
