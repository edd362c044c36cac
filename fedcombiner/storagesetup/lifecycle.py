"""The rules by which the object store removes what nobody wants any more, under `uploads/` only."""

from collections.abc import Sequence
from typing import Final

from minio import Minio
from minio.commonconfig import ENABLED, Filter
from minio.lifecycleconfig import AbortIncompleteMultipartUpload, Expiration, LifecycleConfig, Rule

from fedcombiner.modelstorage.s3.bucket import passing
from fedcombiner.modelstorage.s3.layout import records_prefix

UPLOAD_DAYS: Final = 40
"""House-keeping knows which uploads are needed, and removes the others much sooner. This rule is for what it
cannot reach any more, and so is longer than a round can last (30 days), with the time until its updates are
folded.
"""
_UNFINISHED_DAYS: Final = 1
_OURS: Final = "federated-combiner-"
_UNKNOWN_RULE: Final = ("InvalidArgument", "MalformedXML", "NotImplemented")


def set_rules(client: Minio, bucket: str) -> bool:
    """Set our rules and keep those of others; False if the server knows no rule for unfinished uploads.

    Such a server is MinIO, which removes unfinished uploads after a day by itself.
    """
    others = [rule for rule in _rules(client, bucket) if not (rule.rule_id or "").startswith(_OURS)]
    with passing(*_UNKNOWN_RULE) as refused:
        client.set_bucket_lifecycle(bucket, LifecycleConfig([*others, *_expiry(), _unfinished()]))
    if refused:
        client.set_bucket_lifecycle(bucket, LifecycleConfig([*others, *_expiry()]))
    return not refused


def _rules(client: Minio, bucket: str) -> Sequence[Rule]:
    config = client.get_bucket_lifecycle(bucket)
    return config.rules if config else []


def _expiry() -> Sequence[Rule]:
    """Records go first: an upload without its data would be taken for a whole one."""
    return [
        _expiring("records", records_prefix("uploads"), UPLOAD_DAYS),
        _expiring("uploads", "uploads/", UPLOAD_DAYS + 1),
    ]


def _expiring(name: str, prefix: str, days: int) -> Rule:
    return Rule(
        ENABLED, rule_filter=Filter(prefix=prefix), rule_id=_OURS + name, expiration=Expiration(days=days)
    )


def _unfinished() -> Rule:
    return Rule(
        ENABLED,
        rule_filter=Filter(prefix=""),
        rule_id=f"{_OURS}unfinished",
        abort_incomplete_multipart_upload=AbortIncompleteMultipartUpload(_UNFINISHED_DAYS),
    )
