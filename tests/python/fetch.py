"""Fetches an identity with the Python client of SPIFFE and waits until it is rotated."""

import sys
import threading

from spiffe import WorkloadApiClient

DEADLINE_SECONDS = 30


def main() -> int:
    seen = set()
    rotated = threading.Event()
    failures = []

    def updated(context) -> None:
        seen.add(context.default_svid.leaf.serial_number)
        if len(seen) > 1:
            rotated.set()

    with WorkloadApiClient(socket_path=sys.argv[1]) as client:
        svid = client.fetch_x509_svid()
        bundles = client.fetch_x509_bundles()
        authorities = bundles.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
        if not authorities.x509_authorities:
            print("no authority for the identity's trust domain", file=sys.stderr)
            return 1
        print(svid.spiffe_id)
        client.stream_x509_contexts(updated, failures.append)
        if not rotated.wait(DEADLINE_SECONDS):
            print(f"no rotation; failures: {failures}", file=sys.stderr)
            return 1
        print("rotated")
    return 0


if __name__ == "__main__":
    sys.exit(main())
