"""The limit of open files: each connection of a client is one."""

import resource

import structlog

log = structlog.get_logger(__name__)


def raise_limit() -> None:
    """Raise the soft limit of open files to the hard limit, as far as the system allows; logged."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        log.info("limit of open files", limit=soft)
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        log.warning(
            "the limit of open files cannot be raised", limit=soft, hard_limit=hard, reason=str(error)
        )
    else:
        log.info("limit of open files raised", limit=hard, was=soft)
