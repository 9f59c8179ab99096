"""Login: who asks, as every handler and guard sees them."""

from dataclasses import dataclass
from typing import Final, cast

from starlette.requests import HTTPConnection
from starlette.types import Scope

from dicom_node.settings_web import Role

KEY: Final = "login"  # in the scope of a request
INCLUDED: Final = {Role.OPERATOR: frozenset({Role.VIEWER, Role.MONITOR})}


@dataclass(frozen=True)
class Login:
    """Somebody who is known, and what they may; `name` is empty where nobody was asked."""

    name: str
    roles: frozenset[Role]
    session_id: str = ""  # of a browser that logged in by the page

    def has_one_of(self, roles: frozenset[Role]) -> bool:
        """Whether one of these roles is theirs, or is part of one of theirs."""
        held = self.roles.union(*(INCLUDED.get(role, frozenset()) for role in self.roles))
        return bool(held & roles)


EVERYBODY: Final = Login("", frozenset(Role))  # http.login = "none"


def login_in(scope: Scope) -> Login | None:
    """Who sends this request; None = nobody that is known."""
    return cast("Login | None", scope.get(KEY))


def may(request: HTTPConnection, role: Role) -> bool:
    """Whether the sender of a request has a role."""
    login = login_in(request.scope)
    return login is not None and login.has_one_of(frozenset({role}))


def address_of(scope: Scope) -> str:
    """Address that a request comes from."""
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def asker_of(request: HTTPConnection) -> str:
    """Who asks, as it is written beside what they asked for: name and address, or address."""
    login, address = login_in(request.scope), address_of(request.scope)
    return f"{login.name}, {address}" if login is not None and login.name else address
