"""Bridges to other libraries: data sets in, retrievers and FiftyOne out. Each library is loaded by its bridge alone."""
