"""The work: from a trusted event and a tenant to rows."""
