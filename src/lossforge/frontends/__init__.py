"""Where graphs come from: the public language, and programs written for other libraries."""
