"""DICOM over TLS: DCMTK's tools in and out, what is refused, and that nothing ever goes back to plain."""

import socket
import ssl
import subprocess
import threading

import pytest
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, evt

from dicom_node import readiness
from dicom_node.answers import Kind
from dicom_node.dimse.calling import Caller
from dicom_node.dimse.scu import Sending, echo, send_instances
from dicom_node.errors import PeerUnreachable, TlsUnusable
from dicom_node.settings_network import TlsSettings
from dicom_node.tls import client_context, server_context
from tests.certificates import RSA, Authority
from tests.dicom_node.dimse.instances import CT, make_image, save

VERIFICATION = "1.2.840.10008.1.1"


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("hospital"), "hospital")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


@pytest.fixture(scope="module")
def ours(hospital):
    return hospital.sign("node", key_kind=RSA)


@pytest.fixture(scope="module")
def scanner(hospital):
    return hospital.sign("scanner", common_name="SCANNER")


def tls_of(pair, authority, **options):
    files = {"certificate": pair.certificate, "key": pair.key, "trusted": authority.certificate}
    return TlsSettings.model_validate({**files, **options})


def dcmtk(program, port, pair, authority, *arguments, calling="SCANNER"):
    """Its exit status."""
    command = [program, "-aet", calling, "-aec", "SIM4SEG", "-to", "10", "+tls", pair.key, pair.certificate]
    command += ["+cf", authority.certificate, "-ic" if authority is None else "-rc", "127.0.0.1", port]
    command += list(arguments)
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode


@pytest.fixture
def secure(listen, ours, hospital, free_port):
    """A function that starts the listener with TLS; returns its TLS port."""

    def start(**options):
        port = free_port()
        listen(tls={**tls_of(ours, hospital).model_dump(), "listen": True, "port": port, **options})
        return port

    return start


def test_dcmtk_echoes_and_stores_with_tls(secure, scanner, hospital, tmp_path, stored):
    port = secure()
    image = make_image()
    path = save(image, tmp_path)
    assert dcmtk("echoscu", port, scanner, hospital) == 0
    assert dcmtk("storescu", port, scanner, hospital, path) == 0
    assert stored(image.SOPInstanceUID) is not None


@pytest.mark.parametrize("profile", ["+py", "+px", "+pz"])
def test_every_bcp_195_profile_of_dcmtk(secure, scanner, hospital, profile):
    port = secure()
    command = [
        "echoscu",
        "-aec",
        "SIM4SEG",
        "+tls",
        scanner.key,
        scanner.certificate,
        "+cf",
        hospital.certificate,
    ]
    done = subprocess.run(
        [*map(str, command), profile, "127.0.0.1", str(port)], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_peer_without_a_certificate_of_ours_is_refused(secure, hospital, stranger):
    port = secure()
    for pair in (stranger.sign("evil"), hospital.sign("old", days=-1)):
        assert dcmtk("echoscu", port, pair, hospital) != 0
    anonymous = ["echoscu", "-aec", "SIM4SEG", "+tla", "-ic", "-to", "10", "127.0.0.1", str(port)]
    assert subprocess.run(anonymous, capture_output=True, timeout=60, check=False).returncode != 0


def test_a_peer_without_a_certificate_is_let_in_where_that_is_set(secure):
    port = secure(client_certificate="none")
    anonymous = ["echoscu", "-aec", "SIM4SEG", "+tla", "-ic", "-to", "10", "127.0.0.1", str(port)]
    assert subprocess.run(anonymous, capture_output=True, timeout=60, check=False).returncode == 0


def test_the_certificate_may_have_to_name_the_calling_ae(secure, hospital, scanner):
    port = secure(binds_ae_title=True)
    assert dcmtk("echoscu", port, scanner, hospital, calling="SCANNER") == 0
    assert dcmtk("echoscu", port, scanner, hospital, calling="OTHER") != 0
    by_name = hospital.sign("ws", common_name="somebody", san="DNS:WORKSTATION")
    assert dcmtk("echoscu", port, by_name, hospital, calling="WORKSTATION") == 0


@pytest.mark.parametrize(
    "weakness",
    [
        ("-tls1",),
        ("-tls1_1",),
        ("-tls1_2", "-cipher", "AES128-SHA"),
        ("-tls1_2", "-cipher", "ECDHE-RSA-AES128-SHA"),
        ("-tls1_2", "-cipher", "AES128-GCM-SHA256"),
        ("-tls1_2", "-cipher", "NULL-SHA256"),
        ("-tls1_2", "-cipher", "ADH-AES128-SHA256"),
    ],
)
def test_old_versions_and_weak_suites_are_refused(secure, scanner, weakness):
    done = s_client(secure(), scanner, *weakness, level="@SECLEVEL=0")
    assert done.returncode != 0
    assert b"Cipher is (NONE)" in done.stdout or b"no cipher match" in done.stderr


@pytest.mark.parametrize(
    "choice", [("-tls1_3",), ("-tls1_2", "-cipher", "ECDHE-RSA-AES256-GCM-SHA384"), ()], ids=str
)
def test_good_ones_are_not(secure, scanner, choice):
    done = s_client(secure(), scanner, *choice)
    version = b"TLSv1.2" if "-tls1_2" in choice else b"TLSv1.3"
    assert b"Cipher is (NONE)" not in done.stdout
    assert b"New, " + version in done.stdout


def s_client(port, pair, *arguments, level=""):
    arguments = [
        f"{part}:{level}" if "-cipher" in arguments and part.isupper() else part for part in arguments
    ]
    if level and "-cipher" not in arguments:
        arguments += ["-cipher", f"DEFAULT:{level}"]
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-cert", pair.certificate]
    command += ["-key", pair.key, *arguments]
    return subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_plain_dicom_on_the_tls_port_is_closed_and_the_port_lives_on(secure, scanner, hospital):
    port = secure()
    plain = ["echoscu", "-aec", "SIM4SEG", "-to", "10", "127.0.0.1", str(port)]
    assert subprocess.run(plain, capture_output=True, timeout=60, check=False).returncode != 0
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(5)]
    assert dcmtk("echoscu", port, scanner, hospital) == 0
    for connection in idle:
        connection.close()


def test_with_tls_required_there_is_no_plain_port(listen, ours, hospital, free_port):
    port = free_port()
    tls = {**tls_of(ours, hospital).model_dump(), "listen": True, "port": free_port(), "is_required": True}
    listen(tls=tls, port=port)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


# --- what is wrong with our own files ---------------------------------------------------------------


@pytest.mark.parametrize("context", [server_context, client_context])
def test_a_key_that_everybody_reads_is_not_used(hospital, context, tmp_path):
    pair = hospital.sign("careless")
    pair.key.chmod(0o644)
    with pytest.raises(TlsUnusable, match=r"tls\.key: everybody can read"):
        context(tls_of(pair, hospital))


def test_what_is_missing_or_no_pem_is_named(hospital, ours, scanner, tmp_path):
    good = tls_of(ours, hospital).model_dump()
    junk = tmp_path / "junk.pem"
    junk.write_text("nothing")
    junk.chmod(0o600)
    for changes, name in [
        ({"key": None}, "tls.key: is not set"),
        ({"certificate": tmp_path / "gone"}, "tls.certificate: .*not there"),
        ({"trusted": None}, "tls.trusted: is not set"),
        ({"trusted": junk}, "tls.trusted: no certificates"),
        ({"certificate": junk}, "no pair of PEM"),
        ({"key": scanner.key}, "no pair of PEM"),
    ]:
        with pytest.raises(TlsUnusable, match=name):
            server_context(TlsSettings.model_validate(good | changes))


# --- outgoing ---------------------------------------------------------------------------------------


class Peer:
    ae_title, host, tls = "PACS", "127.0.0.1", True

    def __init__(self, port):
        self.port = port


@pytest.fixture
def pacs(free_port, hospital):
    """A function that starts an AE with TLS; returns its peer and how many associations it saw."""
    servers = []

    def start(pair, *, is_tls=True):
        port, seen = free_port(), []
        ae = AE("PACS")
        ae.add_supported_context(VERIFICATION)
        ae.add_supported_context(CT, ExplicitVRLittleEndian)
        context = None
        if is_tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(pair.certificate, pair.key)
            context.load_verify_locations(hospital.certificate)
            context.verify_mode = ssl.CERT_REQUIRED
        handlers = [
            (evt.EVT_REQUESTED, seen.append),
            (evt.EVT_C_STORE, lambda _event: 0x0000),
        ]
        address = ("127.0.0.1", port)
        servers.append(ae.start_server(address, block=False, ssl_context=context, evt_handlers=handlers))
        return Peer(port), seen

    yield start
    for server in servers:
        server.shutdown()


def test_we_send_with_tls_and_show_our_certificate(pacs, hospital, ours, tmp_path):
    peer, seen = pacs(hospital.sign("pacs"))
    tls = tls_of(ours, hospital)
    echo(peer, Caller("SIM4SEG", tls))
    (status,) = send_instances([save(make_image(), tmp_path)], peer, "SIM4SEG", Sending(tls=tls))
    assert status.is_delivered
    assert len(seen) == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_wrong_authority_host_or_plain_peer_gets_nothing(pacs, hospital, stranger, ours, tmp_path):
    path = save(make_image(), tmp_path)
    tls = tls_of(ours, hospital)
    for pair, is_tls in [
        (stranger.sign("false-pacs"), True),
        (hospital.sign("elsewhere", san="IP:127.0.0.9"), True),
        (hospital.sign("plain"), False),
    ]:
        peer, seen = pacs(pair, is_tls=is_tls)
        (status,) = send_instances([path], peer, "SIM4SEG", Sending(tls=tls, connect_timeout_s=1.5))
        assert not status.is_delivered
        assert status.answer.kind in {Kind.NO_TLS, Kind.CONNECT_TIMEOUT}
        assert seen == []
        with pytest.raises(PeerUnreachable):
            echo(peer, Caller("SIM4SEG", tls, connect_timeout_s=1.5))


def test_without_our_files_nothing_is_sent(pacs, hospital, tmp_path):
    peer, seen = pacs(hospital.sign("pacs"))
    (status,) = send_instances([save(make_image(), tmp_path)], peer, "SIM4SEG")
    assert not status.is_delivered
    assert "tls.trusted" in status.detail
    assert seen == []


# --- a node whose files cannot be used --------------------------------------------------------------


def test_a_bad_key_keeps_the_tls_port_closed_and_is_reported(listen, ours, hospital, free_port, tmp_path):
    tls = {**tls_of(ours, hospital).model_dump(), "listen": True, "port": free_port()}
    tls["key"] = tmp_path / "gone.key"
    port = listen(tls=tls)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", tls["port"]))
    socket.create_connection(("127.0.0.1", port)).close()
    (problem,) = readiness.problems(tmp_path)
    assert problem.reason == "tls"
    assert "tls.key" in problem.sentence


def test_with_tls_required_a_bad_key_opens_nothing(listen, ours, hospital, free_port, tmp_path):
    tls = {**tls_of(ours, hospital).model_dump(), "listen": True, "port": free_port(), "is_required": True}
    tls["key"], port = tmp_path / "gone.key", free_port()
    with pytest.raises(TlsUnusable, match="tls"):
        listen(tls=tls, port=port)
    for closed in (port, tls["port"]):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", closed))
    assert readiness.problems(tmp_path)


def test_the_weak_choices_are_ones_that_a_weak_server_takes(hospital, scanner):
    """Or the tests above would be shown by any server at all."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.load_cert_chain(scanner.certificate, scanner.key)
    with socket.create_server(("127.0.0.1", 0)) as server:
        answering = threading.Thread(target=_shake_hands, args=(server, context))
        answering.start()
        done = s_client(server.getsockname()[1], scanner, "-tls1", level="@SECLEVEL=0")
        answering.join()
    assert b"Cipher is (NONE)" not in done.stdout


def _shake_hands(server, context):
    connection, _ = server.accept()
    with context.wrap_socket(connection, server_side=True):
        pass
