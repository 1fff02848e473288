"""The errors under the names that ``edda-framework 0.16`` had for them; the others are in ``edda`` itself."""

from edda.handle import WorkflowCancelledError as WorkflowCancelledException

__all__ = ["WorkflowCancelledException"]
