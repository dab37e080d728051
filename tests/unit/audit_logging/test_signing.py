"""Key rotation without a restart: key and version change together, at every step of a mount."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from audit_logging import signing
from audit_logging.signing import Signer, SigningError, canonical

Keys = dict[str, rsa.RSAPrivateKey]


@pytest.fixture(scope="module")
def keys() -> Keys:
    """Keys by version; making them is what takes time."""
    versions = ("1", "2", "9", "10", "2026-11", "v1.2")
    return {
        version: rsa.generate_private_key(public_exponent=65537, key_size=2048)
        for version in versions
    }


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def signed_by(keys: Keys, headers: dict[str, str]) -> str:
    """The version that a signature claims, after it was verified with the key of that version."""
    version = headers["WM-SEC.KEY-VERSION"]
    keys[version].public_key().verify(
        base64.b64decode(headers["WM-SEC.AUTH-SIGNATURE"]),
        canonical(headers["WM-CONSUMER.ID"], headers["WM-CONSUMER.INTIMESTAMP"], version),
        padding.PKCS1v15(),
        hashes.SHA256(),
    )
    return version


class Mount:
    """A folder as Kubernetes mounts a secret: what is seen is links through one that is swapped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.turn = 0
        folder.mkdir()

    def show(self, files: dict[str, bytes]) -> None:
        self.turn += 1
        data = self.folder / f"..2026_11_23_{self.turn}"
        data.mkdir()
        for name, content in files.items():
            (data / name).write_bytes(content)
        swap = self.folder / "..data_tmp"
        swap.symlink_to(data.name)
        swap.rename(self.folder / "..data")
        for name in files:
            link = self.folder / name
            if not link.is_symlink():
                link.symlink_to(f"..data/{name}")
        for link in self.folder.iterdir():
            if not link.name.startswith("..") and link.name not in files:
                link.unlink()


def test_a_mounted_secret_rotates_key_and_version_together(tmp_path: Path, keys: Keys) -> None:
    mount = Mount(tmp_path / "keys")
    signer = Signer("shop-id", "unused", mount.folder)
    mount.show({"1.pem": pem(keys["1"])})
    assert signed_by(keys, signer.headers(1)) == "1"
    mount.show({"1.pem": pem(keys["1"]), "2.pem": pem(keys["2"])})
    assert signed_by(keys, signer.headers(2)) == "2"
    mount.show({"2.pem": pem(keys["2"])})
    assert signed_by(keys, signer.headers(3)) == "2"
    # Taken back: the lower one is all there is.
    mount.show({"1.pem": pem(keys["1"])})
    assert signed_by(keys, signer.headers(4)) == "1"


@pytest.mark.parametrize(
    ("versions", "newest"),
    [
        (["9", "10", "2"], "10"),
        (["1", "v1.2"], "1"),
        (["v1.2", "2026-11", "10"], "2026-11"),
    ],
)
def test_versions_are_ordered_as_people_count(
    tmp_path: Path, keys: Keys, versions: list[str], newest: str
) -> None:
    for version in versions:
        (tmp_path / f"{version}.pem").write_bytes(pem(keys[version]))
    assert signed_by(keys, Signer("c", "", tmp_path).headers(1)) == newest


def test_a_key_that_is_half_copied_is_passed_over_until_it_is_whole(
    tmp_path: Path, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "1.pem").write_bytes(pem(keys["1"]))
    signer = Signer("c", "", tmp_path)
    whole = pem(keys["2"])
    for cut in (0, 30, len(whole) // 2):
        (tmp_path / "2.pem").write_bytes(whole[:cut])
        assert signed_by(keys, signer.headers(1)) == "1"
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        (tmp_path / "2.pem").write_bytes(b"-----BEGIN nothing")
        for _ in range(3):
            signer.headers(1)
    assert len([record for record in caplog.records if "passed over" in record.message]) == 1
    assert whole.decode() not in caplog.text
    (tmp_path / "2.pem").write_bytes(whole)
    assert signed_by(keys, signer.headers(1)) == "2"


@pytest.mark.parametrize("what", ["emptied", "removed", "unreadable"])
def test_while_the_folder_is_away_the_last_pair_still_signs(
    tmp_path: Path, keys: Keys, what: str
) -> None:
    folder = tmp_path / "keys"
    folder.mkdir()
    path = folder / "2.pem"
    path.write_bytes(pem(keys["2"]))
    signer = Signer("c", "1", folder)
    signer.headers(1)
    if what == "unreadable":
        path.write_bytes(b"nonsense")
    else:
        path.unlink()
    if what == "removed":
        folder.rmdir()
    # With its own version, and not with KEY_VERSION.
    assert signed_by(keys, signer.headers(2)) == "2"


def test_a_key_that_is_exchanged_between_look_and_reading_is_found_the_next_time(
    tmp_path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment between: whatever is read, a signature's version names the key that made it."""
    (tmp_path / "1.pem").write_bytes(pem(keys["1"]))
    signer = Signer("c", "", tmp_path)
    load = signing.load_private_key
    steps: list[Callable[[], object]] = [
        # The first reading finds its file gone, and another in its place.
        lambda: (tmp_path / "1.pem").rename(tmp_path / "2.pem"),
    ]

    def load_and_meddle(path: Path) -> rsa.RSAPrivateKey:
        if steps:
            steps.pop()()
        return load(path)

    monkeypatch.setattr(signing, "load_private_key", load_and_meddle)
    with pytest.raises(SigningError, match="No such file"):
        signer.headers(1)
    assert signer.headers(2)["WM-SEC.KEY-VERSION"] == "2"
    (tmp_path / "9.pem").write_bytes(pem(keys["9"]))
    steps.append(lambda: (tmp_path / "10.pem").write_bytes(pem(keys["10"])))
    assert signed_by(keys, signer.headers(3)) == "9"
    assert signed_by(keys, signer.headers(4)) == "10"


def test_names_that_are_no_version_are_left_out(tmp_path: Path, keys: Keys) -> None:
    for name in (".9.pem", "9.pem.old", "9.key", "9, 10.pem", "n\u00e9w.pem", "x" * 65 + ".pem"):
        (tmp_path / name).write_bytes(pem(keys["9"]))
    signer = Signer("c", "1", tmp_path)
    with pytest.raises(SigningError, match=r"holds no key. Name each file <key version>\.pem"):
        signer.headers(1)
    (tmp_path / "1.pem").write_bytes(pem(keys["1"]))
    assert signed_by(keys, signer.headers(1)) == "1"


def test_what_is_wrong_with_every_key_of_a_folder_is_said(tmp_path: Path, keys: Keys) -> None:
    (tmp_path / "1.pem").write_bytes(b"nonsense")
    (tmp_path / "2.pem").write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(SigningError) as raised:
        Signer("c", "1", tmp_path).headers(1)
    assert "2.pem is not an RSA key" in str(raised.value)
    assert "1.pem is not an unencrypted PEM private key" in str(raised.value)


def test_a_file_is_read_once_and_not_for_each_delivery(
    tmp_path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("1", "2"):
        (tmp_path / f"{version}.pem").write_bytes(pem(keys[version]))
    signer = Signer("c", "", tmp_path)
    signer.headers(1)
    monkeypatch.setattr(signing, "load_private_key", lambda path: pytest.fail("read again"))
    for _ in range(5):
        signer.headers(1)


def test_another_key_does_not_verify(tmp_path: Path, keys: Keys) -> None:
    """The check of these tests can fail."""
    (tmp_path / "1.pem").write_bytes(pem(keys["2"]))
    with pytest.raises(InvalidSignature):
        signed_by(keys, Signer("c", "", tmp_path).headers(1))
