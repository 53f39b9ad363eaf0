"""Every name, parameter and default that engines written for Mooncake may use is there, whether it works yet or answers "not supported"."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator

import pytest
import surface

MODULES = {"mooncake.store": surface.STORE, "mooncake.engine": surface.ENGINE, "mooncake.mooncake_config": surface.CONFIG}


def _items(text: str) -> Iterator[tuple[str, str]]:
    """(class or "", line)."""
    owner = ""
    for line in text.strip().splitlines():
        if line.startswith("class "):
            owner = line.removeprefix("class ")
            yield "", line
        elif line.startswith(" "):
            yield owner, line.strip()
        else:
            yield "", line


CASES = [(module, owner, line) for module, text in MODULES.items() for owner, line in _items(text)]


def _default(value: object) -> str:
    text = repr(value)
    return "ReplicateConfig()" if text.startswith("ReplicateConfig(") else text


def _parameters(function: object) -> list[str]:
    """As surface.py writes them: from the Python signature, or from the first line of a native function's documentation."""
    if inspect.isfunction(function):
        parameters = []
        for parameter in inspect.signature(function).parameters.values():
            text = ("*" if parameter.kind is parameter.VAR_POSITIONAL else "") + parameter.name
            parameters.append(text if parameter.default is parameter.empty else f"{text}={_default(parameter.default)}")
        return [parameter for parameter in parameters if parameter != "self"]
    found = []
    for line in (function.__doc__ or "").splitlines():
        if "(" not in line or "->" not in line:
            break
        arguments = ast.parse(f"def {line}: ...").body[0].args
        names = [*arguments.posonlyargs, *arguments.args]
        defaults = [None] * (len(names) - len(arguments.defaults)) + arguments.defaults
        texts = [name.arg + (f"={ast.unparse(value)}" if value is not None else "") for name, value in zip(names, defaults, strict=True)]
        texts += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
        pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        texts += [name.arg + (f"={ast.unparse(value)}" if value is not None else "") for name, value in pairs]
        found.append([text for text in texts if text != "self"])
    # Of several overloads the one with the most parameters is the documented one.
    return max(found, key=len) if found else ["<no signature>"]


@pytest.mark.parametrize(("module", "owner", "line"), CASES, ids=[f"{m}:{o}.{t.split('(')[0]}" for m, o, t in CASES])
def test_name_is_there_with_its_parameters_and_defaults(module: str, owner: str, line: str) -> None:
    scope = importlib.import_module(module)
    if owner:
        scope = getattr(scope, owner)
    kind, _, rest = line.partition(" ")
    if kind == "class":
        assert inspect.isclass(getattr(scope, rest))
    elif kind == "enum":
        name, *members = rest.split()
        assert {member.name: member.value for member in getattr(scope, name)} == {m.split("=")[0]: int(m.split("=")[1]) for m in members}
    elif kind == "const":
        name, value = rest.split()
        expected = value == "True" if value in ("True", "False") else getattr(getattr(scope, value.split(".")[0]), value.split(".")[1])
        assert getattr(scope, name) is expected or getattr(scope, name) == expected
        assert repr(getattr(scope, name)) == repr(expected)
    elif line.startswith("."):
        name = line[1:]
        assert hasattr(scope, name) or hasattr(scope(), name)
    else:
        name, _, parameters = line.removesuffix(")").partition("(")
        wanted = parameters.split()
        if name == "__init__" and not wanted:
            assert callable(scope)
            return
        assert _parameters(getattr(scope, name)) == wanted


def test_replicate_config_has_the_defaults_and_takes_every_field() -> None:
    from mooncake.store import ObjectDataType, ReplicateConfig, SoftPinAction

    config = ReplicateConfig()
    defaults = {
        "replica_num": 1, "nof_replica_num": 0, "dfs_replica_num": 0, "soft_pin_action": SoftPinAction.PRESERVE, "soft_pin_ttl_ms": None,
        "with_soft_pin": False, "with_hard_pin": False, "preferred_segment": "", "preferred_segments": [], "preferred_nof_segments": [],
        "prefer_alloc_in_same_node": False, "data_type": ObjectDataType.UNKNOWN, "group_ids": None,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in defaults} == defaults
    values = {
        "replica_num": 2, "soft_pin_action": SoftPinAction.ENABLE, "soft_pin_ttl_ms": 5, "with_hard_pin": True, "preferred_segment": "a:1",
        "preferred_segments": ["a:1", "b:2"], "prefer_alloc_in_same_node": True, "data_type": ObjectDataType.KVCACHE, "group_ids": ["g"],
    }  # fmt: skip
    for name, value in values.items():
        setattr(config, name, value)
        assert getattr(config, name) == value
    assert config.with_soft_pin
    config.group_ids = None
    assert config.group_ids is None
    assert hasattr(ReplicateConfig, "group_ids")
    for name, wrong in {"replica_num": "two", "group_ids": 3, "with_hard_pin": "yes", "preferred_segments": "a:1"}.items():
        with pytest.raises(TypeError):
            setattr(config, name, wrong)


def test_old_vllm_finds_its_adaptor() -> None:
    import mooncake.store
    import mooncake_vllm_adaptor

    assert mooncake_vllm_adaptor.MooncakeDistributedStore is mooncake.store.MooncakeDistributedStore
    engine = mooncake_vllm_adaptor.mooncake_vllm_adaptor()
    assert callable(engine.initializeExt) and callable(engine.transferSync)


def test_calls_of_later_releases_answer_not_supported() -> None:
    from mooncake.store import MooncakeDistributedStore

    store = MooncakeDistributedStore()
    assert store.put_tensor_with_parallelism("k", None) == -1012
    assert store.batch_put_session_start(["a", "b"], [1, 2]) == [-1012, -1012]
    assert store.batch_get_tensor_with_parallelism(["a", "b"]) == [None, None]
    assert store.create_copy_task("k", ["a:1"])[1] == -1012
    assert store.query_task((1, 2)) == (None, -1012)
    assert store.setup_dummy(1, 1, "a:1") == -1012


def test_the_asynchronous_store_has_a_twin_for_every_method() -> None:
    import asyncio

    from mooncake.async_store import MooncakeDistributedStoreAsync

    store = MooncakeDistributedStoreAsync()
    assert asyncio.run(store.async_health_check()) == 1
    assert asyncio.run(store.async_batch_is_exist([])) == []
    with pytest.raises(AttributeError):
        store.async_no_such_method  # noqa: B018
