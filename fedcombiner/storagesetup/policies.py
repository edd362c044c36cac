"""The least that each service must be allowed in the bucket, as S3 policies; docs/storage.md has a table."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, get_args

Role = Literal["combiner", "modelstore", "discovery"]
Policy = Mapping[str, Any]

ROLES: Final[tuple[Role, ...]] = get_args(Role)

_READ: Final = ("s3:GetObject",)
_WRITE: Final = ("s3:PutObject", "s3:AbortMultipartUpload")
_DELETE: Final = ("s3:DeleteObject",)
_PROBE: Final = ("s3:GetObject", "s3:PutObject")

# A writer deletes data that it did not finish; whoever may overwrite data gains no power by that.
_GRANTS: Final[Mapping[Role, Mapping[str, Sequence[str]]]] = {
    "combiner": {
        "uploads/*": (*_READ, *_DELETE),
        "models/*": (*_READ, *_WRITE, *_DELETE),
    },
    "modelstore": {
        "uploads/*": (*_READ, *_WRITE),
        "uploads/data/*": _DELETE,
        "models/*": _READ,
    },
    "discovery": {
        "packages/*": (*_READ, *_WRITE, *_DELETE),
    },
}


def policy(role: Role, bucket: str, access_key: str) -> Policy:
    """The policy document of the user `access_key` who works as `role`."""
    arn = f"arn:aws:s3:::{bucket}"
    grants = {**_GRANTS[role], f"probe/{access_key}": _PROBE}
    listed = [names for names in _GRANTS[role] if names.count("/") == 1]
    # Without the right to list, a name that does not exist is AccessDenied instead of NoSuchKey.
    listing = {
        "Effect": "Allow",
        "Action": ["s3:ListBucket"],
        "Resource": [arn],
        "Condition": {"StringLike": {"s3:prefix": listed}},
    }
    objects = [
        {"Effect": "Allow", "Action": list(actions), "Resource": [f"{arn}/{names}"]}
        for names, actions in grants.items()
    ]
    return {"Version": "2012-10-17", "Statement": [*objects, listing]}
