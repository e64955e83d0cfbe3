"""A shop's "more like this": PYTHONPATH=examples uvicorn shop:app, beside `imagekin serve --model model.onnx --data-dir data`."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, UploadFile
from fastapi.responses import JSONResponse

from imagekin import AsyncClient, Item, Neighbour
from imagekin.errors import AlreadyExistsError, ImagekinError


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep one connection for all requests."""
    async with AsyncClient(os.environ.get("IMAGEKIN_ADDRESS", "localhost:50051")) as app.state.client:
        await app.state.client.wait_ready(timeout=120)
        try:
            await app.state.client.create_collection("products", thumbnail_size=160)
        except AlreadyExistsError:
            pass
        yield


app = FastAPI(title="Shop", lifespan=lifespan)


@app.exception_handler(ImagekinError)
async def explained(request: Request, error: ImagekinError) -> JSONResponse:
    """Answer with the error's own status and its one line."""
    return JSONResponse({"message": str(error)}, error.http_status)


@app.put("/products/{number}")
async def put(number: str, photo: UploadFile, kind: str, price: float) -> dict[str, str]:
    """Add a product, or replace its photo."""
    item = Item(number, image=await photo.read(), label=kind, payload={"price": price})
    await app.state.client.upsert("products", [item])
    return {"stored": number}


@app.get("/products/{number}/similar")
async def similar(number: str, k: int = 5, below: float = 1e9) -> list[dict[str, Any]]:
    """Find products like one of ours, up to a price."""
    price = f"payload.price <= {below}"
    found = await app.state.client.search(keys=[number], k=k, collection="products", filter=price, with_payload=True)
    return shown(found[0])


@app.post("/similar")
async def similar_to_photo(photo: UploadFile, k: int = 5) -> list[dict[str, Any]]:
    """Find products like a customer's photo."""
    found = await app.state.client.search([await photo.read()], k=k, collection="products", with_payload=True)
    return shown(found[0])


def shown(neighbours: list[Neighbour]) -> list[dict[str, Any]]:
    """Return the products that a page of the shop shows."""
    return [
        {"number": one.key, "kind": one.label, "similarity": one.similarity, **(one.payload or {})}
        for one in neighbours
    ]
