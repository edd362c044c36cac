"""Certificates: what the authority makes, what a key pair refuses, and when files are read again."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from fedcombiner.certs.authority import Authority, general_name
from fedcombiner.servicekit.certificates import BadKeyPair, KeyPair
from fedcombiner.servicekit.errors import StartupError
from fedcombiner.servicekit.metrics import Metrics
from fedcombiner.servicekit.settings import InvalidSettings, ServiceSettings
from fedcombiner.servicekit.tls import IdentityInFiles, ServerIdentity, load_identity, trust_context
from tests.tls_kit import Certificates, PairFiles

HOUR = timedelta(hours=1)


@pytest.fixture
def files(certificates: Certificates, tmp_path: Path) -> PairFiles:
    """A copy of the good pair, to be spoilt."""
    copy = PairFiles(tmp_path / "tls.crt", tmp_path / "tls.key")
    copy.write(certificates.good)
    return copy


def encrypted(key: bytes) -> bytes:
    private = serialization.load_pem_private_key(key, password=None)
    return private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )


def test_a_pair_knows_its_names_and_its_days(certificates: Certificates) -> None:
    pair = certificates.good.pair()
    assert pair.names == ("localhost", "127.0.0.1")
    assert pair.days_left(certificates.now) == pytest.approx(30, abs=0.01)
    assert certificates.expired.pair().days_left(certificates.now) == pytest.approx(-30, abs=0.01)
    assert "PRIVATE" not in repr(pair)


def test_a_pair_survives_the_announcement(certificates: Certificates) -> None:
    pair = certificates.good.pair()
    assert KeyPair.from_announcement({"status": "added", **pair.as_announcement()}) == pair


@pytest.mark.parametrize(
    ("change", "part", "reason"),
    [
        ({"certificate": None}, "certificate", "the answer has no certificate"),
        ({"key": ""}, "key", "the answer has no key"),
        ({"key": 5}, "key", "the answer has no key"),
        ({"certificate": "%%%"}, "certificate", "not base64"),
        ({"certificate": "ü"}, "certificate", "not base64"),
        ({"certificate": "aGVsbG8="}, "certificate", "no certificate in PEM"),
        ({"key": "aGVsbG8="}, "key", "no private key in PEM"),
    ],
)
def test_an_announcement_without_a_usable_pair(
    certificates: Certificates, change: dict[str, object], part: str, reason: str
) -> None:
    reply = {**certificates.good.pair().as_announcement(), **change}
    with pytest.raises(BadKeyPair, match=reason) as caught:
        KeyPair.from_announcement(reply)
    assert caught.value.part == part


def test_files_that_are_not_there_or_hold_something_else(files: PairFiles, tmp_path: Path) -> None:
    def refusal() -> str:
        with pytest.raises(StartupError) as caught:
            IdentityInFiles(files.certificate, files.key)
        return str(caught.value)

    certificate, key = files.certificate.read_bytes(), files.key.read_bytes()
    files.key.write_bytes(encrypted(key))
    assert refusal() == f"TLS_KEY_FILE={files.key}: the private key has a passphrase; store it without one"
    files.key.write_bytes(certificate)
    assert refusal() == f"TLS_KEY_FILE={files.key}: holds no private key in PEM format"
    files.key.unlink()
    assert refusal() == f"TLS_KEY_FILE={files.key}: cannot be read: No such file or directory"
    files.key.mkdir()
    assert refusal() == f"TLS_KEY_FILE={files.key}: cannot be read: Is a directory"
    files.key.rmdir()
    files.key.write_bytes(key)
    files.certificate.write_bytes(b"\x00\xff")
    assert refusal() == f"TLS_CERT_FILE={files.certificate}: holds no certificate in PEM format"


def test_a_key_of_another_certificate(certificates: Certificates) -> None:
    with pytest.raises(StartupError, match=r"TLS_KEY_FILE=.*: the private key does not fit the certificate"):
        IdentityInFiles(certificates.good.certificate, certificates.expired.key)


def test_one_file_without_the_other() -> None:
    with pytest.raises(InvalidSettings, match="TLS_CERT_FILE and TLS_KEY_FILE are needed together"):
        ServiceSettings.load(tls_cert_file="server.pem")


def test_without_settings_there_is_no_tls() -> None:
    assert load_identity(None, None, Metrics()) is None


def test_a_renewed_pair_is_taken_once_it_is_whole(files: PairFiles, certificates: Certificates) -> None:
    identity = IdentityInFiles(files.certificate, files.key)
    followed: list[KeyPair] = []
    identity.follow(followed.append)
    old, renewed = identity.pair(), certificates.issue("renewed")
    assert identity.pair() is old
    files.certificate.write_bytes(renewed.certificate.read_bytes())
    assert identity.pair() is old
    files.key.unlink()
    assert identity.pair() is old
    files.write(renewed)
    assert identity.pair() == renewed.pair()
    assert followed == [renewed.pair()]


def test_the_days_left_are_a_metric_that_follows_a_renewal(
    files: PairFiles, certificates: Certificates
) -> None:
    metrics = Metrics()

    def days() -> float | None:
        return metrics.registry.get_sample_value("fedcombiner_tls_certificate_days_left")

    files.write(certificates.expired)
    load_identity(files.certificate, files.key, metrics)
    assert days() == pytest.approx(-30, abs=0.1)
    files.write(certificates.good)
    assert days() == pytest.approx(30, abs=0.1)


def test_the_same_pair_again_is_no_renewal(certificates: Certificates) -> None:
    identity = ServerIdentity(certificates.good.pair())
    before = identity.pair()
    identity.replace(certificates.good.pair())
    assert identity.pair() is before


def test_authorities_that_cannot_be_read(tmp_path: Path, certificates: Certificates) -> None:
    with pytest.raises(StartupError, match=r"^CA=.*: cannot be read: No such file"):
        trust_context(tmp_path / "none.pem", "CA")
    with pytest.raises(StartupError, match=r"^CA=.*: holds no certificate in PEM format"):
        trust_context(certificates.good.key, "CA")
    assert trust_context(certificates.ca, "CA").check_hostname


def test_a_certificate_says_what_strict_verifiers_ask_for(certificates: Certificates) -> None:
    own = x509.load_pem_x509_certificate(certificates.good.certificate.read_bytes())
    ca = x509.load_pem_x509_certificate(certificates.ca_pem)
    own.verify_directly_issued_by(ca)
    identifier = own.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert identifier == ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).critical
    assert not own.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_an_authority_goes_on_after_it_was_stored(certificates: Certificates) -> None:
    first = Authority.create("stored", now=certificates.now, lifetime=HOUR)
    again = Authority.load(first.certificate, first.key)
    issued = again.issue(["fl.example.org"], now=certificates.now, lifetime=HOUR)
    own = x509.load_pem_x509_certificate(issued.certificate)
    own.verify_directly_issued_by(x509.load_pem_x509_certificate(first.certificate))
    other = Authority.create("other", now=certificates.now, lifetime=HOUR)
    with pytest.raises(ValueError, match="does not fit"):
        Authority.load(first.certificate, other.key)


@pytest.mark.parametrize("host", ["localhost", "fl.example.org", "*.example.org", "a_b", "x" * 63])
def test_dns_names(host: str) -> None:
    assert general_name(host) == x509.DNSName(host)


@pytest.mark.parametrize("host", ["10.0.0.1", "::1", "[2001:db8::1]"])
def test_addresses(host: str) -> None:
    assert isinstance(general_name(host), x509.IPAddress)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "fl.example.org:12080",
        "https://x",
        "a b",
        "-a",
        "a..b",
        "10.0.0.256",
        "*.*.x",
        "x" * 64,
        "müller.de",
        "a\n",
    ],
)
def test_hosts_that_are_none(host: str) -> None:
    with pytest.raises(ValueError, match=r"host: .* allowed: a DNS name"):
        general_name(host)
