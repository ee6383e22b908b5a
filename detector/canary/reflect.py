# SPDX-License-Identifier: Apache-2.0
"""The reflector: tells whoever asks by HTTP the address that the question came from, and keeps nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import ip_address

_LONGEST = 8192  # bytes of a request
_PATIENCE = 5.0  # seconds that a request may take


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        async with asyncio.timeout(_PATIENCE):
            await reader.readuntil(b"\r\n\r\n")
            body = f"{ip_address(writer.get_extra_info('peername')[0])}\n".encode()
            head = f"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
    except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
        pass
    finally:
        writer.close()


async def reflect(addresses: Sequence[str], port: int) -> None:
    """Serve on these addresses until it is cancelled.

    Raises:
        OSError: an address cannot be listened on.
    """
    servers = [
        await asyncio.start_server(_answer, address, port, limit=_LONGEST, backlog=256)
        for address in addresses
    ]
    await asyncio.gather(*(server.serve_forever() for server in servers))
