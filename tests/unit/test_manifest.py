"""bananas.yaml: what it means when it is right, and that a wrong one is told everything at once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from bananas import yamlmap
from bananas.errors import ManifestError
from bananas.manifest import Manifest, load
from bananas.spec import FunctionSpec, PoolSpec, RateSpec, RetrySpec, ScheduleSpec

ROOT = Path(__file__).parents[2]
Load = Callable[..., Manifest]


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A folder with the functions hello and mail, and a package-shaped one."""
    for name in ("hello", "mail"):
        folder = tmp_path / "functions" / name
        folder.mkdir(parents=True)
        (folder / "handler.py").write_text("def handle(event, context):\n    return event\n")
    (tmp_path / "functions" / "mail" / "requirements.txt").write_text("six\n")
    (tmp_path / "shop" / "cart").mkdir(parents=True)
    (tmp_path / "shop" / "cart" / "__init__.py").touch()
    (tmp_path / "shop" / "cart" / "api.py").touch()
    return tmp_path


@pytest.fixture
def read(app: Path) -> Load:
    """Loads a manifest given as text."""

    def read(text: str, **environ: str) -> Manifest:
        path = app / "bananas.yaml"
        path.write_text(dedent(text))
        return load(path, environ)

    return read


@pytest.fixture
def problems(app: Path, read: Load) -> Callable[..., list[str]]:
    """The problems of a manifest given as text, without the file's name."""

    def problems(text: str, **environ: str) -> list[str]:
        with pytest.raises(ManifestError) as caught:
            read(text, **environ)
        prefix = f"{app / 'bananas.yaml'}:"
        assert all(problem.startswith(prefix) for problem in caught.value.problems)
        return [problem.removeprefix(prefix) for problem in caught.value.problems]

    return problems


# -- what is right ----------------------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_spec(app: Path, read: Load) -> None:
    """A function of one line, or none, is complete."""
    manifest = read("version: 1\nfunctions:\n  hello:\n  mail: {}\n")
    assert manifest.functions["hello"].spec == FunctionSpec()
    assert manifest.functions["mail"].spec == FunctionSpec()
    assert manifest.functions["hello"].folder == (app / "functions/hello").resolve()
    assert manifest.functions["hello"].requirements is None
    assert manifest.pools == {}


def test_every_key_arrives_in_its_field(app: Path, read: Load) -> None:
    """Each key of functions and pools ends as the number, text or list that the spec stores."""
    manifest = read(
        """
        version: 1
        pools:
          default:
          mail: {concurrency: 3, memory: 1.5G, cpus: 0.5, pids: 64, tmp: 16M, idle_timeout: 90s, min_warm: 1, stems: 0,
                 egress: [smtp.example.com:587, "db=10.0.0.5:5432", 127.0.0.1:8025]}
          gpu: {gpus: all, network: open}
        functions:
          mail:
            runtime: python3.12
            path: shop
            handler: cart.api.handle
            pool: mail
            allow_pools: [default]
            priority: high
            timeout: 1500ms
            init_timeout: 1m
            retries: {max: 5, base: 1s, factor: 1.5, cap: 1m, jitter: full}
            env: {GREETING: hello, EMPTY: ""}
            result_ttl: 2h
            max_uses: 100
            max_lifetime: 1h
            calls_per_sandbox: 20
            min_warm: 2
            egress: [db:5432]
            rate: {limit: 100/m, burst: 20}
          hello: {retries: 0, rate: 10/s}
        """
    )
    assert manifest.pools == {
        "default": PoolSpec(),
        "mail": PoolSpec(
            concurrency=3,
            memory_mb=1536,
            cpus=0.5,
            pids=64,
            tmp_mb=16,
            idle_timeout_ms=90_000,
            min_warm=1,
            stems=0,
            egress=("smtp.example.com:587", "db=10.0.0.5:5432", "127.0.0.1:8025"),
        ),
        "gpu": PoolSpec(gpus="all", network="open"),
    }
    assert manifest.functions["mail"].folder == (app / "shop").resolve()
    assert manifest.functions["mail"].spec == FunctionSpec(
        runtime="python3.12",
        handler="cart.api.handle",
        pool="mail",
        allow_pools=("default",),
        priority="high",
        timeout_ms=1500,
        init_timeout_ms=60_000,
        retries=RetrySpec(max=5, base_ms=1000, factor=1.5, cap_ms=60_000, jitter="full"),
        env={"GREETING": "hello", "EMPTY": ""},
        result_ttl_ms=7_200_000,
        max_uses=100,
        max_lifetime_ms=3_600_000,
        calls_per_sandbox=20,
        min_warm=2,
        egress=("db:5432",),
        rate=RateSpec(limit="100/m", burst=20),
    )
    assert manifest.functions["hello"].spec.retries == RetrySpec(max=0)
    assert manifest.functions["hello"].spec.rate == RateSpec(limit="10/s")


def test_requirements_are_found_in_the_folder(app: Path, read: Load) -> None:
    """The path that deploy installs from is absolute."""
    manifest = read("version: 1\nfunctions: {mail: {requirements: requirements.txt}}")
    assert manifest.functions["mail"].requirements == (app / "functions/mail/requirements.txt").resolve()


def test_variables_are_filled_in_from_the_environment(read: Load) -> None:
    """${VAR} anywhere in a text, a default for an unset or empty one, $$ for a dollar; numbers too."""
    manifest = read(
        """
        version: 1
        pools: {default: {concurrency: "${SLOTS}", cpus: "${CPUS}", egress: ["${HOST}:${PORT:-587}"]}}
        functions:
          hello:
            timeout: ${SECONDS}s
            priority: ${PRIORITY:-low}
            env: {A: "x${HOST}y", B: "${EMPTY:-d:e}", C: "$${HOST} costs $5", D: "${EMPTY}", N: "${SLOTS}"}
        """,
        SLOTS="4",
        CPUS="1.5",
        HOST="smtp.example.com",
        SECONDS="7",
        EMPTY="",
    )
    pool, spec = manifest.pools["default"], manifest.functions["hello"].spec
    assert (pool.concurrency, pool.cpus, pool.egress) == (4, 1.5, ("smtp.example.com:587",))
    assert (spec.timeout_ms, spec.priority) == (7000, "low")
    assert spec.env == {"A": "xsmtp.example.comy", "B": "d:e", "C": "${HOST} costs $5", "D": "", "N": "4"}
    assert all(type(value) is str for value in spec.env.values())


def test_the_contents_of_a_variable_are_not_filled_in_again(read: Load) -> None:
    """A secret that holds ${…} stays as it is."""
    manifest = read("version: 1\nfunctions: {hello: {env: {A: &x '${P}', B: *x}}}", P="a${Q}$$b")
    assert manifest.functions["hello"].spec.env == {"A": "a${Q}$$b", "B": "a${Q}$$b"}


def test_yes_no_on_and_off_stay_words(app: Path, read: Load) -> None:
    """YAML 1.1 would make booleans of them, even of a function's name."""
    for name in ("on", "no"):
        (app / "functions" / name).symlink_to(app / "functions" / "hello")
    manifest = read(
        """
        version: 1
        pools: {off: {}}
        functions:
          on: {env: {COUNTRY: no, FLAG: yes, y: n}, pool: off}
          no:
        """
    )
    assert list(manifest.functions) == ["on", "no"]
    assert manifest.functions["on"].spec.pool == "off"
    assert manifest.functions["on"].spec.env == {"COUNTRY": "no", "FLAG": "yes", "y": "n"}


def test_anchors_aliases_and_merge_keys_work(read: Load) -> None:
    """What is shared is written once; a key of one's own wins over a merged one."""
    manifest = read(
        """
        version: 1
        functions:
          hello: &common {timeout: 5s, env: &env {A: a}}
          mail: {<<: *common, timeout: 6s}
        """
    )
    hello, mail = manifest.functions["hello"].spec, manifest.functions["mail"].spec
    assert (hello.timeout_ms, mail.timeout_ms, mail.env) == (5000, 6000, {"A": "a"})


def test_the_example_app_is_valid() -> None:
    """The file that the README deploys loads with an empty environment."""
    manifest = load(ROOT / "bananas.yaml", {})
    assert {"hello", "send_email"} <= set(manifest.functions)


def test_the_example_in_the_documentation_is_valid(tmp_path: Path) -> None:
    """The reference page's complete example can be copied."""
    page = (ROOT / "docs/bananas-yaml.md").read_text("utf-8")
    example = re.search(r"```yaml\n(version: 1\n.*?)```", page, re.DOTALL)
    assert example
    for name in ("send_email", "resize"):
        (tmp_path / "functions" / name).mkdir(parents=True)
        (tmp_path / "functions" / name / "handler.py").touch()
    (tmp_path / "functions/resize/requirements.txt").touch()
    (tmp_path / "bananas.yaml").write_text(example[1])
    manifest = load(tmp_path / "bananas.yaml", {"SMTP_HOST": "smtp.example.com"})
    assert manifest.functions["send_email"].spec.env["SMTP_HOST"] == "smtp.example.com"


def test_the_documentation_names_every_key() -> None:
    """A key that is not on the reference page does not exist for users."""
    from bananas.manifest_schema import Function, Pool, Retries, Schedule

    page = (ROOT / "docs/bananas-yaml.md").read_text("utf-8")
    for model in (Pool, Function, Retries, Schedule):
        for key in model.model_fields:
            assert f"| `{key}` |" in page, f"{model.__name__}.{key}"


def test_a_schedule_is_a_text_or_a_mapping(read: Load) -> None:
    """The short form has the defaults; a payload is any JSON value, with variables filled in."""
    manifest = read(
        """
        version: 1
        functions:
          hello: {schedule: "*/5 * * * *"}
          mail:
            schedule:
              cron: "@daily"
              tz: ${ZONE:-Europe/Berlin}
              catchup: all
              overlap: queue
              payload: {to: ["${WHO}", 1, 1.5, true, ~], deep: {a: {}}}
        """,
        WHO="ada",
    )
    assert manifest.functions["hello"].spec.schedule == ScheduleSpec(cron="*/5 * * * *")
    mail = manifest.functions["mail"].spec
    assert mail.schedule == ScheduleSpec(
        cron="@daily",
        tz="Europe/Berlin",
        catchup="all",
        overlap="queue",
        payload={"to": ["ada", 1, 1.5, True, None], "deep": {"a": {}}},
    )
    assert FunctionSpec.decode(mail.encode()) == mail
    empty = read("version: 1\nfunctions: {mail: {schedule: {cron: '@daily', payload: ~}}}")
    assert empty.functions["mail"].spec.schedule == ScheduleSpec(cron="@daily", payload=None)


def test_wrong_schedules_are_told_with_their_places(problems: Callable[..., list[str]]) -> None:
    """The expression, the zone and the key that are wrong are named, at their line and column."""
    assert problems(
        """\
        version: 1
        functions:
          hello:
            schedule: "0 0 30 2 *"
          mail:
            schedule: {cron: "* * * * * *", tz: europe/berlin, catchup: some, overlaps: skip}
        """
    ) == [
        "4:15: functions.hello.schedule.cron: '0 0 30 2 *' never comes: no such month has a day 30; "
        "write a day up to 29",
        "6:22: functions.mail.schedule.cron: '* * * * * *' has 6 fields; write five: minute hour day-of-month month "
        "day-of-week; seconds and years are not supported",
        "6:41: functions.mail.schedule.tz: 'europe/berlin' is not a time zone; did you mean 'Europe/Berlin'?",
        "6:65: functions.mail.schedule.catchup: 'some' is not valid; write one of none, last, all",
        "6:71: functions.mail.schedule.overlaps: unknown key; did you mean 'overlap'?",
    ]
    large = "version: 1\nfunctions: {hello: {schedule: {cron: '@daily', payload: '" + "x" * 70_000 + "'}}}"
    assert problems(large) == ["2:57: functions.hello.schedule.payload: has 70002 bytes as JSON; write at most 65536"]
    short = 'write "0 2 * * *", @daily and the like, or {cron: "0 2 * * *", tz: Europe/Berlin}'
    for written, place, wrong in [
        ("5", "4:15", f"5 is not a schedule; {short}"),
        ("[]", "4:15", f"a list is not a schedule; {short}"),
        ("{tz: UTC}", "4:5", f"has no cron; {short}"),
        ("~", "4:5", "has no value; write one, or leave the key out"),
    ]:
        text = f"version: 1\nfunctions:\n  hello:\n    schedule: {written}\n"
        assert problems(text) == [f"{place}: functions.hello.schedule: {wrong}"]


# -- what is wrong ----------------------------------------------------------------------------------------------------


def test_a_functions_egress_must_be_in_that_of_its_pool(problems: Callable[..., list[str]]) -> None:
    """It takes away and never adds; only a pool that the file has can be looked into."""
    assert problems(
        """\
        version: 1
        pools:
          mail: {egress: [a.example:1, "db=10.0.0.5:2"]}
        functions:
          hello: {pool: mail, egress: [a.example:1, db:2, "c:3"]}
        """
    ) == ["5:51: functions.hello.egress[2]: pool 'mail' has no c:3 in its egress; add it there, or leave it out here"]


def test_every_problem_is_told_at_once_in_order_with_its_place(problems: Callable[..., list[str]]) -> None:
    """One run shows all that is wrong, by line and column: of the key when the key is wrong, else of the value."""
    assert problems(
        """\
        version: 2
        pools:
          Mail: {memory: 256}
          gpu:
            gpus: many
            concurrency: 0
            egress: [a.example.com, "10.1.2.3:25", "db:99999", 5]
        functions:
          hello:
            timout: 30s
            timeout: 30
            timeout: 31s
            retries: {max: many, bas: 2s}
            env: {A: 1, B: true, C: "${NOPE}", D: , 9x: z}
          mail: {priority: urgent, pool: gpo, allow_pools: [default, zzz], runtime: node20}
          ghost:
        funktions: {}
        """
    ) == [
        "1:10: version: 2 is not a version of this format; write 1",
        "3:3: pools.Mail: 'Mail' is not valid; write lower-case letters, digits, - and _, a letter first, "
        "at most 63 in all",
        "3:18: pools.Mail.memory: 256 has no unit; write 256M",
        "5:11: pools.gpu.gpus: 'many' is not a whole number; write one, 0 to 64, without quotes; or write all",
        "6:18: pools.gpu.concurrency: 0 is out of range; write 1 to 512",
        "7:14: pools.gpu.egress[0]: 'a.example.com' has no port; "
        "write a DNS name and a port, such as smtp.example.com:587",
        "7:29: pools.gpu.egress[1]: 10.1.2.3 is an address, and a sandbox has no route to it; "
        "give it a name that your code connects to, such as db=10.1.2.3:25",
        "7:44: pools.gpu.egress[2]: port 99999 is out of range; write 1 to 65535",
        "7:56: pools.gpu.egress[3]: 5 is not text; write host:port, such as smtp.example.com:587",
        "10:5: functions.hello.timout: unknown key; did you mean 'timeout'?",
        "11:14: functions.hello.timeout: 30 has no unit; write 30s",
        "12:5: functions.hello.timeout: written twice, on line 11 and on line 12; keep one",
        "13:20: functions.hello.retries.max: 'many' is not a whole number; write one, 0 to 20, without quotes",
        "13:26: functions.hello.retries.bas: unknown key; did you mean 'base'?",
        '14:14: functions.hello.env.A: 1 is not text, and the environment holds only text; write it in quotes: "1"',
        "14:20: functions.hello.env.B: true is not text, and the environment holds only text; "
        'write it in quotes: "true"',
        "14:29: functions.hello.env.C: the environment variable NOPE is not set; set it, or write ${NOPE:-default} "
        "for a default",
        "14:40: functions.hello.env.D: has no value; write one, or leave the key out",
        "14:45: functions.hello.env.9x: '9x' is not valid; write letters, digits and _, and no digit first",
        "15:20: functions.mail.priority: 'urgent' is not valid; write one of high, normal, low",
        "15:34: functions.mail.pool: there is no pool 'gpo' under pools; did you mean 'gpu'?",
        "15:62: functions.mail.allow_pools[1]: there is no pool 'zzz' under pools; define it there, "
        "or write one of default, Mail, gpu",
        "15:77: functions.mail.runtime: runtime 'node20' is not supported; node22 and node for the default one are",
        "16:3: functions.ghost.path: there is no folder functions/ghost; create it, or write its path",
        "17:1: funktions: unknown key; did you mean 'functions'?",
    ]


ONE = "version: 1\nfunctions:\n  hello: {%s}\n"


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ("timeout: '30'", "'30' is not a time; write a number and ms, s, m, h or d, such as 30s"),
        ("timeout: 1.5", "1.5 has no unit; write 1.5s"),
        ("timeout: 2d", "2d is out of range; write 100ms to 1d"),
        ("timeout: [30s]", "a list is not a time; write a number and a unit, such as 30s"),
        ("timeout: ~", "has no value; write one, or leave the key out"),
        ("init_timeout: 11m", "11m is out of range; write 100ms to 10m"),
        ("result_ttl: 1ms", "1ms is out of range; write 1s to 30d"),
        ("retries: 21", "21 is out of range; write 0 to 20"),
        ("retries: [1]", "a list is not valid; write a number of retries, or {max: 3, base: 2s, factor: 2}"),
        ("retries: true", "true is not a whole number; write one, 0 to 20, without quotes"),
        ("retries: {factor: 0.5}", "0.5 is out of range; write 1 to 10"),
        ("retries: {jitter: ful}", "'ful' is not valid; write one of none, full; did you mean 'full'?"),
        ("rate: 10", "10 is not a rate; write a whole number and /s, /m or /h, such as 10/s"),
        ("rate: 10/d", "'10/d' is not valid; write a whole number and /s, /m or /h, such as 10/s"),
        ("rate: {burst: 5}", "has no limit; write 10/s, or {limit: 10/s, burst: 20}"),
        ("rate: {limit: 1/s, burst: 0}", "0 is out of range; write 1 to 100000"),
        ("rate: {limit: 1/s, brst: 1}", "unknown key; did you mean 'burst'?"),
        ("max_uses: 0", "0 is out of range; write at least 1"),
        ("max_uses: 1.0", "1.0 is not a whole number; write one, at least 1, without quotes"),
        ("calls_per_sandbox: 0", "0 is out of range; write 1 to 100"),
        ("calls_per_sandbox: 101", "101 is out of range; write 1 to 100"),
        ("single_use: 'true'", "'true' is not valid; write true or false, without quotes"),
        ("max_lifetime: 31d", "31d is out of range; write 1s to 30d"),
        ("min_warm: -1", "-1 is out of range; write 0 to 512"),
        ("runtime: ruby", "'ruby' is not valid; write python, or python3.N for a certain one"),
        ("runtime: 3.11", "3.11 is not text; write python, or python3.N for a certain one"),
        ("handler: handle", "'handle' is not valid; write module.function, such as handler.handle"),
        (
            "handler: main.run",
            "there is no main.py in functions/hello; create it with def run(event, context), or write ",
        ),
        (
            "handler: a.b.run",
            "there is no a/b.py in functions/hello; create it with def run(event, context), or write ",
        ),
        ("path: ../x", "../x leads out of the folder of bananas.yaml; write a path below it"),
        ("path: /tmp", "/tmp leads out of the folder of bananas.yaml; write a path below it"),
        ("path: away", "away is a link that leads out of the folder of bananas.yaml; write a path below it"),
        ("path: functions/hullo", "there is no folder functions/hullo; create it"),
        ("path: ''", "'' is not a path below the folder of bananas.yaml; write one"),
        ("requirements: r.txt", "there is no file r.txt in functions/hello; create it, or leave the key out"),
        (
            "requirements: ../mail/requirements.txt",
            "../mail/requirements.txt leads out of the folder functions/hello; ",
        ),
        ("allow_pools: default", "'default' is not a list; write one, such as [email, gpu]"),
        ("env: [A]", "a list is not a mapping; write names and values, such as {SMTP_HOST: localhost}"),
        ("env: {A: [1]}", "a list is not text, and the environment holds only text"),
        ("env: {A: 017}", "017 means different things to different YAML readers; write a plain number, or quote it"),
        ("env: {A: 1:30}", "1:30 means different things to different YAML readers; write a plain number, or quote it"),
        ("env: {A: '${'}", "${ is not a variable; write ${NAME} or ${NAME:-default}, or $$ for a dollar sign"),
        ("env: {A: '${B-c}'}", "${B-c} is not a variable; write ${NAME} or ${NAME:-default}, or $$ for a dollar sign"),
        ('env: {A: "\\0"}', "holds a NUL character, which an environment variable cannot"),
        ("gpus: 1", "belongs to a pool; write pools: {name: {gpus: …}} and pool: name here"),
        ("secrets: [1A]", "'1A' is not valid; write a letter or _, then up to 62 letters, digits and _"),
        (
            "egress: ['a=10.0.0.1:1']",
            "'a=10.0.0.1:1': only the pool's egress says which address a name is; write a:port",
        ),
        ("colour: red", "unknown key; known are runtime, path, handler, pool, "),
    ],
)
def test_each_wrong_value_says_what_is_right(
    app: Path, problems: Callable[..., list[str]], keys: str, problem: str
) -> None:
    """One problem, one sentence, and nothing else about the same value."""
    (app / "away").symlink_to("/usr")
    (found,) = problems(ONE % keys)
    place, _, says = found.partition(": functions.hello")
    assert re.fullmatch(r"3:\d+", place)
    assert says.partition(": ")[2].startswith(problem)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("version: 1\nfunctions:\n\thello: {}\n", "3:1: a tab; YAML allows only spaces for indentation"),
        ("version: 1\na: [1, 2\nb: 3\n", "3:2: not valid YAML: expected ',' or ']', but got ':' "),
        ("version: 1\na: b: c\n", "2:5: not valid YAML: mapping values are not allowed here"),
        ("a: 'x\n", "2:1: not valid YAML: found unexpected end of stream (while scanning a quoted scalar that begins"),
        ("a: 1\n---\nb: 2\n", "2:1: a second document begins here; one file holds one document"),
        ("a: !!python/name:os.system x\n", "1:4: the tag tag:yaml.org,2002:python/name:os.system is not used here"),
        ("? [a]\n: b\n", "1:3: a key must be plain text"),
        ("a: *nobody\n", "1:4: the alias *nobody has no anchor &nobody before it"),
        ("a: &a [*a]\n", "1:8: the alias *a has no anchor &a before it"),
        ("a: " + "[" * 40 + "\n", "1:28: nested deeper than 24 levels"),
        ("a: x\x07y\n", "1:5: the character U+0007 is not allowed in YAML; remove it"),
        ("a: {<<: 3}\n", "1:9: << takes a mapping, such as *name, or a list of mappings"),
        ("", "1:1: the file holds nothing; write a mapping that begins with 'version: 1'"),
        ("- a\n", "1:1: the file holds a list; write a mapping that begins with 'version: 1'"),
        ("functions: {}\n", "1:1: version: is missing; write 'version: 1' at the top"),
        ("version: '1'\n", "1:10: version: '1' is not a version of this format; write 1"),
        ("version: true\n", "1:10: version: true is not a version of this format; write 1"),
        ("version: 1\nfunctions: [hello]\n", "2:12: functions: a list is not a mapping; write names and values, "),
        ("version: 1\nfunctions: {hello: 3}\n", "2:20: functions.hello: 3 is not a mapping; write keys and values "),
        ("version: 1\npools: {p: {egress: [%s]}}\n" % ("a:1," * 33), "2:21: pools.p.egress: 33 items are too many; "),
    ],
)
def test_what_cannot_be_read_is_told_with_its_place(
    problems: Callable[..., list[str]], text: str, problem: str
) -> None:
    """YAML errors name the line and column too, in words of ours."""
    (found,) = problems(text)
    assert found.startswith(problem)


def test_aliases_cannot_exhaust_memory(problems: Callable[..., list[str]]) -> None:
    """A billion laughs end after 20,000 values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    (found,) = problems("\n".join(lines))
    assert found.endswith("more than 20000 values, aliases counted each time; use fewer")


def test_aliases_cannot_nest_without_end(problems: Callable[..., list[str]]) -> None:
    """Depth counts through aliases."""
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [[[[[*a{n - 1}]]]]]" for n in range(1, 10))]
    (found,) = problems("\n".join(lines))
    assert found.endswith("nested deeper than 24 levels")


def test_a_file_that_is_too_large_missing_or_not_utf8_is_told(app: Path) -> None:
    """The reading itself fails with a line that says what to do."""
    path = app / "bananas.yaml"
    with pytest.raises(ManifestError, match=r"no such file or directory; run this beside bananas.yaml, or name .* -f"):
        load(path, {})
    path.write_bytes(b"#" * (yamlmap.MAX_BYTES + 1))
    with pytest.raises(ManifestError, match=r":1:1: the file is larger than 1 MiB"):
        load(path, {})
    path.write_bytes(b"version: 1\na: \xff\n")
    with pytest.raises(ManifestError, match=r":2:4: not UTF-8; save the file in that encoding"):
        load(path, {})


def test_a_byte_order_mark_is_accepted(app: Path) -> None:
    """Some editors write one."""
    path = app / "bananas.yaml"
    path.write_bytes(b"\xef\xbb\xbfversion: 1\n")
    assert load(path, {}).functions == {}


def test_errors_speak_no_pydantic(problems: Callable[..., list[str]]) -> None:
    """No library's jargon reaches the user."""
    text = json.dumps(
        problems("version: x\npools: 3\nfunctions: {hello: {retries: {max: {}}, env: 3, priority: []}, a: [1]}")
    )
    assert not re.search(r"pydantic|Input should|validation error|type=|BaseModel|dict|str\b|int\b", text)
