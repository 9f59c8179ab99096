"""What is refused at the start rather than found out later: a log-in by which nobody could come in."""

from collections.abc import Iterator
from typing import Final

from dicom_node.readiness import Problem
from dicom_node.settings import NodeSettings
from dicom_node.settings_web import is_loopback
from dicom_node.web.login.files import LoginUnusable
from dicom_node.web.login.provider import fetcher
from dicom_node.web.login.sessions import require_private_key
from dicom_node.web.login.users import Users, UsersFile

LOGIN: Final = "login"  # the reason of /health/ready


def require_way_in(settings: NodeSettings) -> None:
    """Raise LoginUnusable where a log-in is required, and there is nobody who could."""
    if settings.http.login == "none":
        return
    if settings.oidc.issuer is not None:
        fetcher(settings.oidc)  # reads oidc.trusted
    require_private_key(settings.home)
    _require_somebody(settings)


def _require_somebody(settings: NodeSettings) -> None:
    users = UsersFile(settings.home).now()
    if settings.oidc.issuer is None and not users.tokens and not _passwords(settings, users):
        raise LoginUnusable(_why_nobody(settings, users))


def login_problems(settings: NodeSettings) -> list[Problem]:
    """What is wrong with the log-in now, for /health/ready."""
    try:
        _require_somebody(settings)
    except LoginUnusable as error:
        return [Problem(LOGIN, str(error))]
    return []


def findings(settings: NodeSettings) -> Iterator[tuple[bool, str]]:
    """What `dicom-node doctor` says: whether it is well, and a sentence."""
    http = settings.http
    if http.login == "none":
        whom = "whoever uses this machine" if is_loopback(http.host) else f"whoever reaches {http.host}"
        yield True, f'http.login = "none": {whom} reads and changes everything'
        return
    try:
        require_way_in(settings)
        users = UsersFile(settings.home).now()
    except LoginUnusable as error:
        yield False, str(error)
        return
    provider = f", tokens of {settings.oidc.issuer}" if settings.oidc.issuer else ""
    yield True, f"log-in required: {len(users.users)} users, {len(users.tokens)} tokens{provider}"


def _passwords(settings: NodeSettings, users: Users) -> bool:
    return bool(users.users) and settings.http.takes_passwords


def _why_nobody(settings: NodeSettings, users: Users) -> str:
    if users.users:
        return (
            "http.login: nobody could log in, since passwords are not taken over plain HTTP at "
            f"{settings.http.host}: set http.tls = true, or http.behind_tls_proxy = true behind a proxy."
        )
    return (
        'http.login = "required": there is nobody who could log in; make a user (dicom-node users add NAME '
        "--role viewer) or a token (dicom-node users token NAME --role sender), or set oidc.issuer."
    )
