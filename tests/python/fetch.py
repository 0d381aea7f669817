"""Fetches X.509-SVIDs with a client that others wrote, and waits until one has been rotated."""

import sys
import time

from spiffe import WorkloadApiClient

with WorkloadApiClient(socket_path=f"unix://{sys.argv[1]}") as client:
    first = client.fetch_x509_svid()
    print(first.spiffe_id)
    bundles = client.fetch_x509_bundles()
    assert bundles.get_bundle_for_trust_domain(first.spiffe_id.trust_domain).x509_authorities
    seen = []
    client.stream_x509_contexts(
        on_success=lambda context: seen.append(context.default_svid.leaf.serial_number),
        on_error=lambda error: sys.exit(f"stream: {error}"),
    )
    deadline = time.monotonic() + 20
    while len(set(seen)) < 2:
        if time.monotonic() > deadline:
            sys.exit(f"no rotation seen: {seen}")
        time.sleep(0.05)
    print("rotated")
