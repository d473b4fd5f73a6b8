"""The batch stages on Ray: embed, index."""
