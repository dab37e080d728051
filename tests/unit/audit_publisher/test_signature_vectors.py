"""The examples of RFC 9421 itself (section 4.3, appendix B), and its structured fields."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from audit_logging import message_signatures as messages
from audit_publisher.identity import message_verification
from audit_publisher.identity.keys import load_public_key, verifies
from audit_publisher.identity.structured_fields import Malformed, byte_sequences, inner_lists

RSA = """-----BEGIN RSA PUBLIC KEY-----
MIIBCgKCAQEAhAKYdtoeoy8zcAcR874L8cnZxKzAGwd7v36APp7Pv6Q2jdsPBRrw
WEBnez6d0UDKDwGbc6nxfEXAy5mbhgajzrw3MOEt8uA5txSKobBpKDeBLOsdJKFq
MGmXCQvEG7YemcxDTRPxAleIAgYYRjTSd/QBwVW9OwNFhekro3RtlinV0a75jfZg
kne/YiktSvLG34lw2zqXBDTC5NHROUqGTlML4PlNZS5Ri2U4aCNx2rUPRcKIlE0P
uKxI4T+HIaFpv8+rdV6eUgOrB2xeI1dSFFn/nnv5OoZJEIB+VmuKn3DCUcCZSFlQ
PSXSfBDiUGhwOw76WuSSsf1D4b/vLoJ10wIDAQAB
-----END RSA PUBLIC KEY-----"""

PSS_MODULUS = (
    "r4tmm3r20Wd_PbqvP1s2-QEtvpuRaV8Yq40gjUR8y2Rjxa6dpG2GXHbPfvMs8ct-Lh1GH45x28Rw3Ry53mm-oAXjyQ86"
    "OnDkZ5N8lYbggD4O3w6M6pAvLkhk95AndTrifbIFPNU8PPMO7OyrFAHqgDsznjPFmTOtCEcN2Z1FpWgchwuYLPL-Wokq"
    "ltd11nqqzi-bJ9cvSKADYdUAAN5WUtzdpiy6LbTgSxP7ociU4Tn0g5I6aDZJ7A8Lzo0KSyZYoA485mqcO0GVAdVw9lq4"
    "aOT9v6d-nb4bnNkQVklLQ3fVAvJm-xdDOp9LCNCN48V2pnDOkFV6-U9nV5oyc6XI2w"
)

META = {
    "REQUEST_METHOD": "POST",
    "PATH_INFO": "/foo",
    "QUERY_STRING": "param=Value&Pet=dog",
    "HTTP_HOST": "example.com",
    "HTTP_DATE": "Tue, 20 Apr 2021 02:07:55 GMT",
    "CONTENT_TYPE": "application/json",
    "HTTP_CONTENT_DIGEST": "sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7"
    "BNNyealdVLvRwEmTHWXvJwew==:",
    "CONTENT_LENGTH": "18",
}
BODY = b'{"hello": "world"}'

B21 = '();created=1618884473;keyid="test-key-rsa-pss";nonce="b3k2pp5k7z-50gnwp.yemd"'
B21_SIGNATURE = (
    "d2pmTvmbncD3xQm8E9ZV2828BjQWGgiwAaw5bAkgibUopemLJcWDy/lkbbHAve4cRAtx31Iq786U7it++wgGxbtRxf8U"
    "dx7zFZsckzXaJMkA7ChG52eSkFxykJeNqsrWH5S+oxNFlD4dzVuwe8DhTSja8xxbR/Z2cOGdCbzR72rgFWhzx2VjBqJz"
    "sPLMIQKhO4DGezXehhWwE56YCE+O6c0mKZsfxVrogUvA4HELjVKWmAvtl6UnCh8jYzuVG5WSb/QEVPnP5TmcAnLH1g+s"
    "++v6d4s8m0gCw1fV5/SITLq9mhho8K3+7EPYTU8IU1bLhdxO5Nyt8C8ssinQ98Xw9Q=="
)
B23 = (
    '("date" "@method" "@path" "@query" "@authority" "content-type" "content-digest" '
    '"content-length");created=1618884473;keyid="test-key-rsa-pss"'
)
B23_SIGNATURE = (
    "bbN8oArOxYoyylQQUU6QYwrTuaxLwjAC9fbY2F6SVWvh0yBiMIRGOnMYwZ/5MR6fb0Kh1rIRASVxFkeGt683+qRpRRU5"
    "p2voTp768ZrCUb38K0fUxN0O0iC59DzYx8DFll5GmydPxSmme9v6ULbMFkl+V5B1TP/yPViV7KsLNmvKiLJH1pFkh/aY"
    "A2HXXZzNBXmIkoQoLd7YfW91kE9o/CCoC1xMy7JA1ipwvKvfrs65ldmlu9bpG6A9BmzhuzF8Eim5f8ui9eH8LZH896+Q"
    "IF61ka39VBrohr9iyMUJpvRX2Zbhl5ZJzSRxpJyoEZAFL2FUo5fTIztsDZKEgM4cUA=="
)
PROXY = (
    '("@method" "@authority" "@path" "content-digest" "content-type" "content-length" "forwarded")'
    ';created=1618884480;keyid="test-key-rsa";alg="rsa-v1_5-sha256";expires=1618884540'
)
PROXY_SIGNATURE = (
    "S6ZzPXSdAMOPjN/6KXfXWNO/f7V6cHm7BXYUh3YD/fRad4BCaRZxP+JH+8XY1I6+8Cy+CM5g92iHgxtRPz+MjniOaYmd"
    "kDcnL9cCpXJleXsOckpURl49GwiyUpZ10KHgOEe11sx3G2gxI8S0jnxQB+Pu68U9vVcasqOWAEObtNKKZd8tSFu7LB5Y"
    "Av0RAGhB8tmpv7sFnIm9y+7X5kXQfi8NMaZaA8i2ZHwpBdg7a6CMfwnnrtflzvZdXAsD3LH2TwevU+/PBPv0B6NMNk93"
    "wUs/vfJvye+YuI87HU38lZHowtznbLVdp770I6VHR6WfgS9ddzirrswsE1w5o0LV/g=="
)
PROXY_META = META | {
    "HTTP_HOST": "origin.host.internal.example",
    "HTTP_FORWARDED": "for=192.0.2.123;host=example.com;proto=https",
}


def pss_key() -> Any:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers

    modulus = int.from_bytes(base64.urlsafe_b64decode(PSS_MODULUS + "=="))
    return RSAPublicNumbers(65537, modulus).public_key()


@pytest.mark.parametrize(
    ("params", "signature", "algorithm", "meta"),
    [
        (B21, B21_SIGNATURE, "rsa-pss-sha512", META),
        (B23, B23_SIGNATURE, "rsa-pss-sha512", META),
        (PROXY, PROXY_SIGNATURE, "rsa-v1_5-sha256", PROXY_META),
    ],
    ids=["B.2.1", "B.2.3", "4.3"],
)
def test_an_example(
    params: str, signature: str, algorithm: messages.Algorithm, meta: dict[str, str]
) -> None:
    key = pss_key() if algorithm == "rsa-pss-sha512" else load_public_key(RSA)
    signed = inner_lists(f"sig={params}")["sig"]
    raw = byte_sequences(f"sig=:{signature}:")["sig"]
    assert signed.text == params

    def base(changes: dict[str, str]) -> bytes:
        values = [
            (name, message_verification._value(meta | changes, name, own, "https"))
            for name, own in signed.items
        ]
        return messages.signature_base(values, signed.text)

    assert verifies(key, raw, base({}), algorithm)
    other: messages.Algorithm = (
        "rsa-v1_5-sha256" if algorithm == "rsa-pss-sha512" else "rsa-pss-sha512"
    )
    assert not verifies(key, raw, base({}), other)
    if signed.items:
        assert not verifies(key, raw, base({"PATH_INFO": "/bar"}), algorithm)


def test_its_digests() -> None:
    (name,) = byte_sequences(META["HTTP_CONTENT_DIGEST"])
    assert name == "sha-512"
    digest = messages.content_digest(BODY)
    assert digest == "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:"


def test_a_component_with_a_parameter_is_read_and_refused() -> None:
    text = '("@authority" "@query-param";name="Pet");created=1618884473;tag="header-example"'
    signed = inner_lists(f"sig-b22={text}")["sig-b22"]
    assert signed.text == text
    assert signed.items == (("@authority", ""), ("@query-param", ';name="Pet"'))
    with pytest.raises(message_verification.SignatureRefused, match="not supported"):
        message_verification._value(META, *signed.items[1], "https")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("a=()", "()"),
        ("a=(  )", "()"),
        ('a=( "x"  "y" ) ', None),
        ('a=( "x"  "y" )', '("x" "y")'),
        ('a=("x";sf;key="k" "y");created=007;flag;no=?0', None),
        ('a=("x";sf "y");n=-0;t=tok/en', '("x";sf "y");n=0;t=tok/en'),
        ('a=("q\\"\\\\");b=:AA==:;on=?1', '("q\\"\\\\");b=:AA==:;on'),
        ("  a=()  ", "()"),
        ("b=1;x, a=()", "()"),
        ("c, a=()", "()"),
        ("a=(),b", "()"),
    ],
)
def test_how_a_list_is_written(text: str, canonical: str | None) -> None:
    found = inner_lists(text)["a"]
    if canonical is not None:
        assert found.text == canonical
    assert inner_lists(f"a={found.text}")["a"] == found


@pytest.mark.parametrize(
    "text",
    [
        *("", ",", "a=(", 'a=("x', 'a=("x"', "a=(x)", 'a=("x""y")', "a=() b", "a=(),", "A=()"),
        *("a=();", "a=();=1", "a=();x=", "a=();X=1", "a=();x=1.5", "a=();x=1234567890123456"),
        *(
            "a=();x;x",
            "a=(),a=()",
            'a=("é")',
            'a=("\\x")',
            "a=:A:",
            "a=:AA:",
            "a=:A=AA:",
            "a=:",
            "a=?2",
        ),
        *("a=@1", "a=();x=%", '=("x")', "a=(1)", "a=--1", "a=\t()", "a=()\n"),
        "a=(" + '"x" ' * 40 + ")",
        "a=()" + "".join(f";x{number}" for number in range(40)),
        ",".join(f"x{number}=()" for number in range(40)),
        "a=()" + " " * 7000 + ",b=()",
    ],
)
def test_what_is_no_such_field(text: str) -> None:
    with pytest.raises(Malformed):
        inner_lists(text)
