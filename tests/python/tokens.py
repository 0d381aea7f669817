"""Signs tokens with PyJWT: FILE gets the public key set, standard output the tokens.

usage: tokens.py FILE ISSUER KEY_ID
"""

import json
import sys
import time

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

file, issuer, key_id = sys.argv[1:]
key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))
public.update(kid=key_id, use="sig", alg="RS256")
with open(file, "w") as out:
    json.dump({"keys": [public]}, out)


def token(**changes):
    now = int(time.time())
    claims = {"iss": issuer, "sub": "alice", "aud": "api", "iat": now, "exp": now + 300}
    claims.update(changes)
    return jwt.encode(claims, key, algorithm="RS256", headers={"kid": key_id})


print(
    json.dumps(
        {
            "alice": token(),
            "bob": token(sub="bob"),
            "expired": token(exp=int(time.time()) - 120),
            "audience": token(aud="other"),
            "issuer": token(iss="https://other.example"),
        }
    )
)
