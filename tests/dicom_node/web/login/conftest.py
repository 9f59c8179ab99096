"""A node that wants a log-in, people and machines that it knows, and an OpenID provider."""

from base64 import b64encode

import pytest

from dicom_node.web.app import build_app
from dicom_node.web.login import doorkeeper, users
from dicom_node.web.login.failures import Failures
from dicom_node.web.login.passwords import Cost
from dicom_node.web.login.users import UsersFile
from tests.dicom_node.dimse.instances import make_settings
from tests.dicom_node.web.conftest import Client
from tests.dicom_node.web.login.provider_server import AUDIENCE, running_provider

PASSWORD = "a horse, a staple"
FORM = {"content-type": "application/x-www-form-urlencoded"}


@pytest.fixture(scope="session")
def running():
    with running_provider() as provider:
        yield provider


@pytest.fixture
def provider(running):
    running.reset()
    return running


@pytest.fixture(autouse=True)
def _cheap_hashes(monkeypatch):
    """Everything but the time that scrypt takes is real."""
    for module in (doorkeeper, users):
        monkeypatch.setattr(module, "Cost", lambda: Cost(n=16, r=1, p=1))


@pytest.fixture
def sections(provider):
    return {
        "http": {"allowed_hosts": ["node"], "login": "required"},
        "oidc": {"issuer": provider.issuer, "audience": AUDIENCE},
    }


@pytest.fixture
def known(tmp_path):
    """Users and tokens of the node that `app` is."""
    return UsersFile(tmp_path)


@pytest.fixture
def clock():
    class Clock:
        now = 1000.0

        def __call__(self):
            return self.now

    return Clock()


@pytest.fixture
def failures(clock):
    table = Failures(clock)
    yield table
    table.close()


@pytest.fixture
def make_app(tmp_path, database_url, database, files_root, failures):
    """A function that starts the web server of this home anew, perhaps with other settings."""
    built = []

    def make(sections):
        settings = make_settings(tmp_path, database_url, files_root, **sections)
        built.append(build_app(settings, database, failures))
        return built[-1]

    yield make
    for app in built:
        app.state.services.close()


@pytest.fixture
def app(make_app, sections):
    return make_app(sections)


def basic(name, password=PASSWORD):
    return {"authorization": "Basic " + b64encode(f"{name}:{password}".encode()).decode()}


def bearer(token):
    return {"authorization": f"Bearer {token}"}


def form(client, name, password=PASSWORD, **headers):
    """Log in by the page."""
    content = {"name": name, "password": password, "next": headers.pop("target", "")}
    return client.post("/login", data=content, headers=headers)


def cookie_of(answer):
    """What a browser would send back."""
    return {"cookie": answer.headers["set-cookie"].partition(";")[0]}


__all__ = ["FORM", "PASSWORD", "Client", "basic", "bearer", "cookie_of", "form"]
