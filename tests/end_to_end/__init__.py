"""An event comes in over HTTP, wakes a workflow, and what the workflow publishes arrives at a sink: real processes."""
