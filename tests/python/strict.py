"""Does what the agent tells pass the strictest client? One line for each rule: `ok` or what is wrong.

The rules are those by which clients of SPIFFE differ: what one accepts and another refuses must not
come from the agent at all.
"""

import base64
import json
import sys
from datetime import datetime, timezone

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from google.protobuf.json_format import MessageToDict
from spiffe._proto import workload_pb2, workload_pb2_grpc

HEADER = (("workload.spiffe.io", "true"),)
AUDIENCES = ["a", "b"]


def certificates(run):
    """Certificates in DER, one after the other."""
    found = []
    while run:
        head = run[1]
        size = 2 + head if head < 128 else 2 + (head & 127) + int.from_bytes(run[2 : 2 + (head & 127)])
        found.append(x509.load_der_x509_certificate(run[:size]))
        run = run[size:]
    return found


def part(token, number):
    text = token.split(".")[number]
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def extension(certificate, kind):
    return certificate.extensions.get_extension_for_class(kind)


def rules_of_svid(svid):
    leaf, *above = certificates(svid.x509_svid)
    basic, usage = extension(leaf, x509.BasicConstraints), extension(leaf, x509.KeyUsage)
    names = extension(leaf, x509.SubjectAlternativeName)
    uris = names.value.get_values_for_type(x509.UniformResourceIdentifier)
    extended = extension(leaf, x509.ExtendedKeyUsage).value
    now = datetime.now(timezone.utc)
    key = serialization.load_der_private_key(svid.x509_svid_key, None)
    own = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    yield "leaf has basicConstraints, and is no CA", basic.value.ca is False
    yield "key usage is critical and has digitalSignature", (
        usage.critical and usage.value.digital_signature
    )
    yield "leaf signs neither certificates nor lists", not (
        usage.value.key_cert_sign or usage.value.crl_sign
    )
    yield "one URI name, with a path", len(uris) == 1 and len(uris[0].split("/")) > 3
    yield "names are critical where there is no subject", names.critical or len(leaf.subject)
    yield "extended key usage has both", {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    } <= set(extended)
    yield "leaf is valid now", leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc
    yield "certificates above are CAs that may sign", all(
        extension(one, x509.BasicConstraints).value.ca
        and extension(one, x509.KeyUsage).value.key_cert_sign
        for one in above
    )
    yield "key belongs to the leaf", key.public_key() == leaf.public_key()
    yield "key is ECDSA P-256", isinstance(key.curve, ec.SECP256R1)
    yield "key is PKCS#8", svid.x509_svid_key[:1] == b"\x30" and len(own) == len(svid.x509_svid_key)
    yield "spiffe_id is there and is that of the leaf", svid.spiffe_id == uris[0]
    yield "own bundle is not empty", len(certificates(svid.bundle)) > 0
    yield "at most 16 certificates in a chain", 1 + len(above) <= 16


def rules_of_map(what, bundles, parse):
    yield f"{what}: names have the scheme", all(name.startswith("spiffe://") for name in bundles)
    yield f"{what}: no bundle is empty", all(parse(bundle) for bundle in bundles.values())


def rules_of_token(svid):
    head, claims = part(svid.svid, 0), part(svid.svid, 1)
    yield "token has a kid", bool(head.get("kid"))
    yield "typ is JWT", head.get("typ") == "JWT"
    yield "no other field in the header", set(head) == {"alg", "kid", "typ"}
    yield "alg is ES256", head["alg"] == "ES256"
    yield "aud has all that were asked for", sorted(claims["aud"]) == AUDIENCES
    yield "sub is the identity", claims["sub"] == svid.spiffe_id
    yield "token has not expired", claims["exp"] > datetime.now().timestamp()


def rules_of_keys(document):
    keys = json.loads(document)["keys"]
    yield "every key has a kid", keys and all(key.get("kid") for key in keys)
    yield "no key of another kind or use", all(
        key["kty"] == "EC" and key.get("use", "jwt-svid") == "jwt-svid" and "x5c" not in key
        for key in keys
    )


def main():
    with grpc.insecure_channel(sys.argv[1]) as channel:
        api = workload_pb2_grpc.SpiffeWorkloadAPIStub(channel)

        def first(method, message):
            return next(iter(method(message, metadata=HEADER, timeout=10)))

        x509_svids = first(api.FetchX509SVID, workload_pb2.X509SVIDRequest())
        x509_bundles = first(api.FetchX509Bundles, workload_pb2.X509BundlesRequest())
        jwt_bundles = first(api.FetchJWTBundles, workload_pb2.JWTBundlesRequest())
        asked = workload_pb2.JWTSVIDRequest(audience=AUDIENCES)
        tokens = api.FetchJWTSVID(asked, metadata=HEADER, timeout=10).svids
        checked = api.ValidateJWTSVID(
            workload_pb2.ValidateJWTSVIDRequest(audience="a", svid=tokens[0].svid),
            metadata=HEADER,
            timeout=10,
        )
        claims = MessageToDict(checked.claims)

        def rules():
            for svid in x509_svids.svids:
                yield from rules_of_svid(svid)
            federated = x509_svids.federated_bundles
            yield "there is a federated bundle", len(federated) == 1
            yield from rules_of_map("federated_bundles", federated, certificates)
            yield from rules_of_map("X.509 bundles", x509_bundles.bundles, certificates)
            yield "own and federated bundle", len(x509_bundles.bundles) == 2
            keys = jwt_bundles.bundles
            yield from rules_of_map("JWT bundles", keys, lambda one: json.loads(one)["keys"])
            for document in keys.values():
                yield from rules_of_keys(document)
            for token in tokens:
                yield from rules_of_token(token)
            kids = {key["kid"] for one in keys.values() for key in json.loads(one)["keys"]}
            yield "the token's key is told", part(tokens[0].svid, 0)["kid"] in kids
            yield "checked claims have sub, aud and exp", {"sub", "aud", "exp"} <= set(claims)
            yield "checked identity is told", checked.spiffe_id == tokens[0].spiffe_id
            hints = [svid.hint for svid in x509_svids.svids if svid.hint]
            yield "hints are unique", len(hints) == len(set(hints)) == 2
            for method in ["FetchWITSVID", "FetchWITBundles"]:
                call = channel.unary_unary(f"/SpiffeWorkloadAPI/{method}")
                try:
                    call(b"", metadata=HEADER, timeout=10)
                    yield f"{method} is not served", False
                except grpc.RpcError as error:
                    unserved = error.code() is grpc.StatusCode.UNIMPLEMENTED
                    yield f"{method} is not served", unserved

        for rule, is_met in rules():
            print("ok" if is_met else f"broken: {rule}")


main()
