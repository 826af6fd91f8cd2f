"""From programs to source text; a backend only spells the operations."""
