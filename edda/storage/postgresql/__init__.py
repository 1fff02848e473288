"""PostgreSQL: the database for distributed deployments; LISTEN/NOTIFY hints across processes."""
