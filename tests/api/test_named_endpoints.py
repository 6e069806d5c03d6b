"""The main jobs by Gradio's own client, and as tools by an MCP client."""

from __future__ import annotations

import base64
import io
import json
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from anyio.from_thread import start_blocking_portal
from gradio_client import Client
from PIL import Image
from served_app import AUTH, HAS_MCP, Served
from studio_pictures import pixels

from composer.diffusion.png import read_png
from composer.diffusion.request import Request
from composer.fusions import PLAIN, read_recipe
from composer.studio import ComposeRequest
from composer.ui.endpoints import ENDPOINTS
from composer.ui.layout import USUAL_CFG

PROMPT = "zibo neon <lora:zibo:1> <lora:neon:0.5>"
SMALL: dict[str, Any] = {"steps": 2, "seed": 7}
PATIENCE = 60


@pytest.fixture(scope="module")
def client(served: Served) -> Client:
    return Client(served.address, verbose=False)


def expected(served: Served, prompt: str, fusion: str) -> bytes:
    request = Request(prompt=prompt, cfg_scale=USUAL_CFG, **SMALL)
    return pixels(served.studio, ComposeRequest(request=request, recipe=read_recipe(fusion)))


def test_just_these_are_described_and_every_parameter_has_its_type(client: Client) -> None:
    described: Any = client.view_api(return_format="dict", print_info=False)
    assert set(described["named_endpoints"]) == {f"/{name}" for name in ENDPOINTS}
    assert not described["unnamed_endpoints"]
    for endpoint in described["named_endpoints"].values():
        assert all(parameter["type"] for parameter in endpoint["parameters"])


def test_a_picture_is_that_of_the_studio_with_its_recipe(client: Client, served: Served) -> None:
    path, told = client.predict(PROMPT, fusion="ties", **SMALL, api_name="/generate")
    with Image.open(path) as image:
        assert image.convert("RGB").tobytes() == expected(served, PROMPT, "ties")
    assert read_png(path).fusion["name"] == "ties"
    assert told["seed"] == 7 and "Seed: 7" in told["parameters"] and told["warnings"] == []


def test_ways_are_compared_side_by_side(client: Client) -> None:
    ways = ["bare", "alone:zibo", "weighted", "ties:density=0.4"]
    grid, told = client.predict(PROMPT, ways, seeds=2, **SMALL, api_name="/compare")
    assert [picture["way"] for picture in told["pictures"]] == ways * 2
    assert {"unlike bare", "seconds"} < told["pictures"][2].keys() and told["warnings"] == []
    assert any(key.startswith("zibo") for key in told["pictures"][2])
    with Image.open(grid) as image:
        assert image.width > image.height
    _, usual = client.predict(PROMPT, **SMALL, scores=False, api_name="/compare")
    assert {"bare", "alone:zibo", "weighted"} <= {one["way"] for one in usual["pictures"]}


def test_what_there_is_is_listed(client: Client) -> None:
    loras = client.predict(api_name="/list_loras")
    assert [lora["name"] for lora in loras] == ["neon", "zibo"]
    assert loras[1]["trigger"] == "zibo" and loras[1]["role"] == "style"
    fusions = client.predict(api_name="/list_fusions")
    assert [fusion["key"] for fusion in fusions][: len(PLAIN)] == [each.key for each in PLAIN]
    assert client.predict(api_name="/interrupt") == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prompt": "<lora:zibu:1>"}, "Did you mean 'zibo'"),
        ({"prompt": "fox", "fusion": "magic"}, "There is no fusion 'magic'"),
        ({"prompt": "fox", "steps": 0}, "The number of steps is 0"),
        ({"prompt": "fox", "sampler": "Eulr"}, "There is no sampler"),
    ],
)
def test_what_cannot_be_is_told(client: Client, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match=said):
        client.predict(**settings, api_name="/generate")


def test_values_of_other_types_are_refused_with_a_reason(client: Client) -> None:
    for settings, said in (
        ({"prompt": 7}, "prompt"),
        ({"prompt": "fox", "seed": "x"}, "seed"),
        ({"prompt": "fox", "fusion": ["ties"]}, "fusion"),
        ({"prompt": "fox", "width": "wide"}, "width"),
    ):
        with pytest.raises(Exception, match=said):
            client.predict(**settings, api_name="/generate")


def test_with_a_password_only_who_knows_it_may_call(locked: Served) -> None:
    for path in ("gradio_api/info", "gradio_api/mcp/", "gradio_api/mcp/schema"):
        assert httpx.get(f"{locked.address}/{path}", timeout=PATIENCE).status_code == 401
    run = f"{locked.address}/gradio_api/run/list_loras"
    assert httpx.post(run, json={"data": []}, timeout=PATIENCE).status_code == 401
    client = Client(locked.address, auth=AUTH, verbose=False)
    assert len(client.predict(api_name="/list_loras")) == 2


# --- tools for agents


def call_tools(
    served: Served,
    calls: list[tuple[str, dict[str, Any]]],
    auth: tuple[str, str] | None = None,
) -> Any:
    """The tools that an MCP client finds, and what calls of them answer."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def work() -> Any:
        async with AsyncExitStack() as stack:
            address = f"{served.address}/gradio_api/mcp/"
            http = await stack.enter_async_context(httpx.AsyncClient(auth=auth, timeout=PATIENCE))
            client = streamable_http_client(address, http_client=http)
            streams = await stack.enter_async_context(client)
            session = await stack.enter_async_context(ClientSession(*streams[:2]))
            await session.initialize()
            tools = (await session.list_tools()).tools
            return tools, [await session.call_tool(*call) for call in calls]

    # In a thread of its own: this one may hold the loop of a browser that an earlier test opened.
    with start_blocking_portal() as portal:
        return portal.call(work)


@pytest.mark.skipif(not HAS_MCP, reason="the package mcp is not installed")
def test_an_agent_finds_tools_and_paints(served: Served) -> None:
    tools, (loras, picture, refused) = call_tools(
        served,
        [
            ("list_loras", {}),
            ("generate", {"prompt": PROMPT, "fusion": "ties", **SMALL}),
            ("generate", {"prompt": "<lora:zibu:1>"}),
        ],
    )
    assert [tool.name for tool in tools] == list(ENDPOINTS)
    for tool in tools:
        assert tool.description
        for name, about in tool.inputSchema["properties"].items():
            assert about.get("description"), f"{tool.name}: {name}"
    assert tools[0].inputSchema["required"] == ["prompt"]
    assert "zibo" in loras.content[0].text
    assert not picture.isError
    image = Image.open(io.BytesIO(base64.b64decode(picture.content[0].data)))
    assert image.tobytes() == expected(served, PROMPT, "ties")
    assert "Seed: 7" in picture.content[2].text
    address = picture.content[1].text.partition("URL: ")[2]
    kept = httpx.get(address, timeout=PATIENCE).content
    assert read_png(io.BytesIO(kept)).fusion["name"] == "ties"
    assert refused.isError and "Did you mean 'zibo'" in refused.content[0].text


@pytest.mark.skipif(not HAS_MCP, reason="the package mcp is not installed")
def test_an_agent_with_the_password_may_call(locked: Served) -> None:
    _, (picture,) = call_tools(locked, [("generate", {"prompt": "fox", **SMALL})], AUTH)
    assert picture.content[0].type == "image"


@pytest.mark.skipif(not HAS_MCP, reason="the package mcp is not installed")
def test_a_page_of_another_site_may_not_use_the_tools(served: Served) -> None:
    answer = httpx.post(
        f"{served.address}/gradio_api/mcp/",
        content=json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}),
        headers={"Origin": "http://evil.example", "Accept": "application/json, text/event-stream"},
        timeout=PATIENCE,
    )
    assert answer.status_code == 403
