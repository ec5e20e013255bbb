"""The shipped test kit: a live app, a manual clock, a scripted engine, a verifying session, a checker."""
