"""Evidence about models: digests, signatures, bills of materials."""
