"""HTML pages that load nothing: templates of this package, everything escaped."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def render(template: str, filters: Mapping[str, Callable[..., str]], **values: Any) -> str:
    """Fill a template; a name that is missing is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # Names of data sets and models come from users: everything is escaped.
    environment = Environment(
        loader=PackageLoader("abkd_fast", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(template).render(**values)


def embed(path: Path) -> dict[str, Any]:
    """Return a PNG file as a data address with its size in CSS pixels, 1.5 dots each."""
    content = path.read_bytes()
    # Width and height are the first two fields of the header chunk, big-endian.
    width, height = struct.unpack(">II", content[16:24])
    address = "data:image/png;base64," + base64.b64encode(content).decode()
    return {"src": address, "width": round(width / 1.5), "height": round(height / 1.5)}
