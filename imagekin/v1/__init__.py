"""Generated stubs of the contract (`protos/imagekin/v1`)."""
