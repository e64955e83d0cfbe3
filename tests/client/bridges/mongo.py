"""Put mongomock into the place of MongoDB, before FiftyOne is imported: its server is not to be had from pip."""

import os
from typing import Any


def replace_mongo() -> None:
    """Let FiftyOne keep its samples in this process's memory."""
    os.environ |= {
        "FIFTYONE_DATABASE_URI": "mongodb://localhost",
        "FIFTYONE_DATABASE_VALIDATION": "false",
        "FIFTYONE_DISABLE_SERVICES": "1",
        "FIFTYONE_DO_NOT_TRACK": "true",
    }
    import mongoengine
    import mongomock
    import pymongo
    from mongomock import aggregate, codec_options, collection, database

    store = mongomock.store.ServerStore()
    connect = mongoengine.connect

    class Client(mongomock.MongoClient):
        _closed = False  # an attribute that FiftyOne asks for; of the mock it would be a database

        def __init__(self, *arguments: Any, appname: str = "", **options: Any) -> None:
            super().__init__(*arguments, _store=store, **options)

        def server_info(self) -> dict[str, Any]:
            return {"version": "8.0.0", "versionArray": [8, 0, 0]}

    array_operator = aggregate._Parser._handle_array_operator

    def with_index_of_array(parser: Any, operator: str, value: Any) -> Any:
        if operator != "$indexOfArray":
            return array_operator(parser, operator, value)
        where, what = (parser.parse(one) for one in value)
        return where.index(what) if what in where else -1

    pymongo.MongoClient = Client
    mongoengine.connect = lambda *names, **options: connect(*names, mongo_client_class=Client, **options)
    aggregate._Parser._handle_array_operator = with_index_of_array
    codec_options.is_supported = lambda *_: None
    for kind in (database.Database, collection.Collection):
        kind.with_options = lambda self, *_, **__: self
