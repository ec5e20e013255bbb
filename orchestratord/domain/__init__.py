"""Plain synchronous state: the standard library only, no asyncio, no clock, no logging."""
