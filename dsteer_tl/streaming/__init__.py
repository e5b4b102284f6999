"""More prompts than memory holds: prompts from disk, and shifts as moments instead of rows."""
