"""`combiner storage` on servers: what it makes, and what the users may do afterwards."""

import io
import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest
from discovery_mock.catalog import PackageCatalog
from typer.testing import CliRunner

from fedcombiner.cli.main import app
from fedcombiner.modelstorage.minio import MinioStore
from fedcombiner.modelstorage.s3.bucket import S3Bucket, S3Location, connect
from fedcombiner.modelstorage.s3.errors import StoreRefused
from fedcombiner.modelstorage.s3.leftovers import orphans
from fedcombiner.modelstorage.store import ObjectKey
from tests.contract.s3_kit import ROOT_SECRET, ROOT_USER, Place, new_place
from tests.contract.store_kit import KEY, get, ids, pattern, put

SECRETS = {role: f"{role}@:/%41# ?+é" for role in ("combiner", "modelstore", "discovery")}
MODEL = ObjectKey("models", "m1")


def environment(url: str, bucket: str) -> dict[str, str]:
    secrets = {f"{role.upper()}_MINIO_SECRET_KEY": secret for role, secret in SECRETS.items()}
    return {
        "MINIO_URL": url,
        "MINIO_BUCKET": bucket,
        "MINIO_ROOT_USER": ROOT_USER,
        "MINIO_ROOT_PASSWORD": ROOT_SECRET,
        **secrets,
    }


def run(env: Mapping[str, str], *arguments: str) -> tuple[int, str]:
    """Exit code and what was printed, both streams together."""
    result = CliRunner().invoke(app, ["storage", *arguments], env=env)
    assert not any(secret in result.output for secret in (ROOT_SECRET, *SECRETS.values()))
    return result.exit_code, result.output


def store(url: str, bucket: str, role: str, scratch: Path) -> MinioStore:
    return MinioStore(S3Location(url, bucket, role, SECRETS[role]), scratch, patience=2.0)


async def test_users_can_do_their_work_and_nothing_else(minio: str, tmp_path: Path) -> None:
    bucket = "bucket-of-users"
    env = environment(minio, bucket)
    code, said = run(env, "setup")
    assert (code, said.count("\n")) == (0, 6)
    assert f"bucket {bucket}: made" in said
    modelstore = store(minio, bucket, "modelstore", tmp_path)
    combiner = store(minio, bucket, "combiner", tmp_path)
    discovery = store(minio, bucket, "discovery", tmp_path)
    for each in (modelstore, combiner, discovery):
        await each.start()
    data = pattern(20 << 20)

    assert await modelstore.head(KEY) is None
    await put(modelstore, KEY, data)
    await put(modelstore, KEY, data)
    assert await ids(modelstore) == [KEY.id]
    async with combiner.local_file(KEY) as path:
        assert path.read_bytes() == data
    await combiner.copy(KEY, MODEL)
    assert await combiner.delete(KEY) is True
    assert await get(modelstore, MODEL) == data

    with pytest.raises(StoreRefused, match=r"no right .*`combiner storage setup`"):
        await put(modelstore, ObjectKey("models", "m2"), b"x")
    with pytest.raises(StoreRefused, match="AccessDenied"):
        await modelstore.delete(MODEL)
    with pytest.raises(StoreRefused, match="AccessDenied"):
        await put(combiner, ObjectKey("uploads", "u2"), b"x")
    for key in (KEY, MODEL):
        with pytest.raises(StoreRefused, match="AccessDenied"):
            await discovery.head(key)
        with pytest.raises(StoreRefused, match="AccessDenied"):
            await put(discovery, key, b"x")
    for each in (modelstore, combiner, discovery):
        await each.close()
    names = [entry.object_name for entry in connect(root(minio, bucket)).list_objects(bucket, recursive=True)]
    assert [name for name in names if not str(name).startswith("probe/")] == [
        *(name for name in names if str(name).startswith("models/data/m1/")),
        "models/records/m1",
    ]


def root(url: str, bucket: str) -> S3Location:
    return S3Location(url, bucket, ROOT_USER, ROOT_SECRET)


async def test_discovery_keeps_packages(minio: str, tmp_path: Path) -> None:
    bucket = "bucket-of-packages"
    assert run(environment(minio, bucket), "setup")[0] == 0
    archive = tmp_path / "p.tgz"
    archive.write_bytes(pattern(9 << 20))
    discovery = store(minio, bucket, "discovery", tmp_path / "scratch")
    await discovery.start()
    catalog = PackageCatalog(discovery)
    package = await catalog.put(archive, "p")
    for _ in range(7):
        await catalog.activate(package)
    assert await PackageCatalog(discovery).active() == package
    await discovery.close()
    names = [entry.object_name for entry in connect(root(minio, bucket)).list_objects(bucket, recursive=True)]
    assert {str(name).partition("/")[0] for name in names} == {"packages", "probe"}
    strangers = store(minio, bucket, "modelstore", tmp_path / "scratch")
    await strangers.start()
    with pytest.raises(StoreRefused, match="AccessDenied"):
        await PackageCatalog(strangers).put(archive, "p")
    await strangers.close()


def test_setting_up_twice_changes_nothing_but_a_new_secret(minio: str) -> None:
    bucket = "bucket-of-two"
    env = environment(minio, bucket)
    assert run(env, "setup")[0] == 0
    code, said = run(env, "setup")
    assert code == 0
    assert f"bucket {bucket}: was there" in said
    code, said = run({**env, "COMBINER_MINIO_SECRET_KEY": "another-secret"}, "setup")
    assert code == 0
    with pytest.raises(StoreRefused, match="not the secret of MINIO_ACCESS_KEY"):
        S3Bucket(S3Location(minio, bucket, "combiner", SECRETS["combiner"]), patience=0).get("models/x")
    assert run(env, "setup")[0] == 0


@pytest.mark.parametrize("server", ["moto", "minio"])
def test_uploads_expire_and_rules_of_others_stay(request: pytest.FixtureRequest, server: str) -> None:
    from minio.commonconfig import ENABLED, Filter
    from minio.lifecycleconfig import Expiration, LifecycleConfig, Rule

    place = new_place(request.getfixturevalue(server))
    bucket = place.location.bucket
    theirs = Rule(
        ENABLED, rule_filter=Filter(prefix="logs/"), rule_id="theirs", expiration=Expiration(days=3)
    )
    place.client.set_bucket_lifecycle(bucket, LifecycleConfig([theirs]))
    for _ in range(2):
        code, _ = run(environment(place.location.url, bucket), "setup", "--no-users")
        assert code == 0
    config = place.client.get_bucket_lifecycle(bucket)
    assert config is not None
    expiring = {
        rule.rule_filter.prefix: rule.expiration.days
        for rule in config.rules
        if rule.rule_filter and rule.expiration
    }
    assert expiring == {"logs/": 3, "uploads/records/": 40, "uploads/": 41}
    unfinished = [rule for rule in config.rules if rule.abort_incomplete_multipart_upload]
    assert len(unfinished) == {"moto": 1, "minio": 0}[server]


def test_a_server_without_the_admin_api_is_told_apart(moto: str) -> None:
    env = environment(moto, "bucket-of-moto")
    code, said = run(env, "setup")
    assert code == 1
    assert "say --no-users" in said
    assert "combiner storage policy" in said
    assert run(env, "setup", "--no-users")[0] == 0


def test_a_printed_policy_is_the_one_that_is_set() -> None:
    code, said = run({}, "policy", "modelstore", "--bucket", "b1", "--user", "m")
    assert code == 0
    resources = [names for statement in json.loads(said)["Statement"] for names in statement["Resource"]]
    assert resources == [
        "arn:aws:s3:::b1/uploads/*",
        "arn:aws:s3:::b1/uploads/data/*",
        "arn:aws:s3:::b1/models/*",
        "arn:aws:s3:::b1/probe/m",
        "arn:aws:s3:::b1",
    ]


@pytest.mark.parametrize(
    ("changes", "code", "expected"),
    [
        ({"MINIO_ROOT_PASSWORD": "wrong-secret"}, 1, "not an administrator's at"),
        ({"MINIO_ROOT_USER": "nobody"}, 1, "not an administrator's at"),
        ({"MINIO_ROOT_USER": ""}, 2, "set both"),
        ({"COMBINER_MINIO_SECRET_KEY": ""}, 2, "COMBINER_MINIO_SECRET_KEY is not set; 8 to 40"),
        ({"MODELSTORE_MINIO_SECRET_KEY": "short"}, 2, "MODELSTORE_MINIO_SECRET_KEY has 5 characters"),
        ({"DISCOVERY_MINIO_ACCESS_KEY": "combiner"}, 2, "same user"),
        ({"MINIO_BUCKET": "No Bucket"}, 2, "invalid bucket name"),
        ({"MINIO_URL": "http://127.0.0.1:1"}, 3, "is it running?"),
    ],
)
def test_what_cannot_be_says_what_to_do(
    minio: str, changes: dict[str, str], code: int, expected: str
) -> None:
    result = run({**environment(minio, "bucket-of-none"), **changes}, "setup", "--wait", "0")
    assert result[0] == code, result
    assert expected in result[1]


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fedcombiner.storagesetup.setup", None)
    code, said = run(environment("http://127.0.0.1:1", "b-1"), "setup")
    assert code == 2
    assert "federated-combiner[storage-setup]" in said


async def test_sweeping_removes_old_data_without_a_record(moto: str, tmp_path: Path) -> None:
    place = new_place(moto)
    models = place.store(tmp_path)
    await models.start()
    await put(models, MODEL, b"model")
    await models.close()
    kept = place.stored()
    add(place, "models/data/m1/other-attempt", "uploads/data/u9/lost")
    bucket = S3Bucket(place.location, patience=0)
    assert list(orphans(bucket, timedelta(hours=1))) == []
    with pytest.raises(ValueError, match="in the making"):
        list(orphans(bucket, timedelta(minutes=1)))
    assert [entry.name for entry in orphans(bucket, timedelta(hours=1), ("models",))] == []

    age(place, "models/data/m1/other-attempt", "uploads/data/u9/lost", *kept)
    env = environment(place.location.url, place.location.bucket)
    code, said = run(env, "sweep", "--dry-run")
    assert (code, said.splitlines()[-1]) == (0, "2 orphans of 8 bytes would be removed")
    code, said = run({**env}, "sweep")
    assert (code, said.splitlines()[-1]) == (0, "2 orphans of 8 bytes removed")
    assert place.stored() == kept


async def test_a_store_removes_what_killed_writers_of_a_kind_have_left(moto: str, tmp_path: Path) -> None:
    place = new_place(moto)
    models = place.store(tmp_path)
    await models.start()
    await put(models, MODEL, b"model")
    kept = place.stored()
    lost = ("models/data/m1/other-attempt", "models/data/m2/lost")
    add(place, *lost, "uploads/data/u9/lost")

    async def swept(*, dry_run: bool) -> list[str]:
        found = models.sweep("models", timedelta(hours=1), dry_run=dry_run)
        return [leftover.name async for leftover in found]

    assert await swept(dry_run=False) == []
    age(place, *lost, "uploads/data/u9/lost", *kept)
    assert await swept(dry_run=True) == list(lost)
    assert await swept(dry_run=False) == list(lost)
    assert place.stored() == sorted([*kept, "uploads/data/u9/lost"])
    await models.close()


def add(place: Place, *names: str) -> None:
    for name in names:
        place.client.put_object(place.location.bucket, name, io.BytesIO(b"data"), 4)


def age(place: Place, *names: str) -> None:
    """Let objects in moto be two days old."""
    from moto.s3.models import s3_backends

    for backend in s3_backends["123456789012"].values():
        stored = backend.buckets.get(place.location.bucket)
        if stored:
            for name in names:
                stored.keys[name].last_modified -= timedelta(days=2)
