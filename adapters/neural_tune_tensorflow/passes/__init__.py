"""The passes that make a frozen graph canonical; each walks the graph once."""
