"""How a dashboard is served: to whom, what they may open, and how much the server takes on. Plain data, no toolkit."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mpviz.errors import AccessError
from mpviz.workbench.policy import Policy, bundled_models, is_local
from mpviz.workbench.visits import Limits

COOKIE_SECRETS = ("PANEL_COOKIE_SECRET", "BOKEH_COOKIE_SECRET")
_NEEDED = ("PANEL_OAUTH_KEY", "PANEL_OAUTH_SECRET")
_URLS = ("PANEL_OAUTH_AUTHORIZE_URL", "PANEL_OAUTH_TOKEN_URL", "PANEL_OAUTH_USER_URL")  # of any provider


@dataclass(frozen=True)
class Serving:
    """What `serve` needs beside network, data and address.

    public: True restricts visitors to what comes with mpviz and to `models` and `data` (see `Policy`); False lets them
    open any name and file; None restricts them as soon as something is listed, or others can reach the address.
    basic_auth: a JSON file {user: password}. oauth: a provider by panel's name for it, set up in the environment.
    users: who may come in of those that the provider knows; all when empty. log_json: write events as JSON lines.
    """

    public: bool | None = None
    models: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    basic_auth: Path | None = None
    oauth: str | None = None
    users: tuple[str, ...] = ()
    log_json: bool = False

    def policy(self, address: str, model: str, data: str, folder: str | None) -> Policy:
        """What visitors may open, and what the server starts with. Raises AccessError for a place that is none."""
        restricted = self.public
        if restricted is None:
            restricted = bool(self.models or self.data) or not is_local(address)
        if not restricted:
            return Policy()
        models = self.models if model in bundled_models() else (*self.models, model)
        return Policy(True, models, (*self.data, data), folder)

    def passwords(self) -> dict[str, str] | None:
        """{user: password} of the file, None without one.

        Raises AccessError when the file cannot be read or holds something else, or OAuth is asked for as well.
        """
        if self.basic_auth is None:
            return None
        if self.oauth is not None:
            raise AccessError("--basic-auth and --oauth exclude each other; choose one of them")
        try:
            found = json.loads(self.basic_auth.expanduser().read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:  # its words could quote the file
            why = error.strerror if isinstance(error, OSError) else "this is no JSON"
            raise AccessError(
                f'cannot read the passwords in {self.basic_auth} ({why}); write {{"user": "password"}} there'
            ) from None
        if not isinstance(found, dict) or not found or not all(isinstance(one, str) and one for one in found.values()):
            raise AccessError(f'{self.basic_auth} holds no passwords; write {{"user": "password"}}, none of them empty')
        return found

    def check_oauth(self, environment: Mapping[str, str] = os.environ) -> None:
        """Raises AccessError when a variable that the provider needs is not set."""
        if self.oauth is None:
            return
        needed = (*_NEEDED, *(_URLS if self.oauth == "generic" else ()))
        missing = [name for name in needed if not environment.get(name)]
        if missing:
            raise AccessError(f"OAuth by {self.oauth} needs {', '.join(missing)} in the environment; set them")


def cookie_secret(environment: Mapping[str, str] = os.environ) -> str:
    """What cookies are signed with: of the environment, where logins shall outlive this process, else made now."""
    return next((environment[name] for name in COOKIE_SECRETS if environment.get(name)), secrets.token_hex(32))
