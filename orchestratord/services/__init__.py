"""Use cases. They may await; they know ports and the domain, never a web framework or an HTTP client."""
