"""Verifies a token as a relying party of OpenID Connect does: from the issuer's URL alone.

oidc.py ISSUER AUTHORITIES AUDIENCE TOKEN
"""

import json
import ssl
import sys
import urllib.request

import jwt

ISSUER, AUTHORITIES, AUDIENCE, TOKEN = sys.argv[1:]
context = ssl.create_default_context(cafile=AUTHORITIES)


def get(url):
    with urllib.request.urlopen(url, context=context, timeout=10) as answer:
        return answer.read()


found = json.loads(get(f"{ISSUER}/.well-known/openid-configuration"))
assert found["issuer"] == ISSUER, found
keys = jwt.PyJWKSet.from_json(get(found["jwks_uri"]).decode())
key = keys[jwt.get_unverified_header(TOKEN)["kid"]]
claims = jwt.decode(
    TOKEN,
    key.key,
    algorithms=found["id_token_signing_alg_values_supported"],
    audience=AUDIENCE,
    issuer=ISSUER,
)
print(claims["sub"])
