"""Fetches a token with the Python client of SPIFFE and has it verified by client and agent."""

import sys

from spiffe import SpiffeId, WorkloadApiClient
from spiffe.errors import PySpiffeError

AUDIENCE = "https://api.example"


def main() -> int:
    with WorkloadApiClient(socket_path=sys.argv[1]) as client:
        svid = client.fetch_jwt_svid(audience={AUDIENCE})
        print(svid.spiffe_id)
        bundle = client.fetch_jwt_bundles().get_bundle_for_trust_domain(
            svid.spiffe_id.trust_domain
        )
        if not bundle.jwt_authorities:
            print("no keys for the identity's trust domain", file=sys.stderr)
            return 1
        checked = client.validate_jwt_svid(svid.token, AUDIENCE)
        print(checked.spiffe_id)
        try:
            client.validate_jwt_svid(svid.token, "https://other.example")
            print("valid for another audience", file=sys.stderr)
            return 1
        except PySpiffeError:
            print("refused for another audience")
        try:
            client.fetch_jwt_svid(
                audience={AUDIENCE}, subject=SpiffeId("spiffe://example.org/somebody/else")
            )
            print("got the token of somebody else", file=sys.stderr)
            return 1
        except PySpiffeError:
            print("refused for somebody else")
    return 0


if __name__ == "__main__":
    sys.exit(main())
