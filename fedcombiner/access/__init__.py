"""Who may call what: roles, the table of every rpc and endpoint, tokens, and what enforces them."""
