"""Generated stubs of the KServe v2 inference protocol (`protos/imagekin/kserve`)."""
