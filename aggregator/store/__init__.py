"""The database: everything that must survive a crash, except large blobs."""
