"""Short notes in Ray's head, for every process of the cluster and as long as the cluster lives.

They lie in its key-value store, which Ray's own libraries use so. Outside Ray there are none: writing does
nothing.
"""

import sys
from types import ModuleType

_NAMESPACE = "distillflow"


def write(key: str, note: bytes = b"") -> None:
    if (store := _store()) is not None:
        store._internal_kv_put(key, note, namespace=_NAMESPACE)


def read(key: str) -> bytes | None:
    """None where there is none."""
    store = _store()
    return None if store is None else store._internal_kv_get(key, namespace=_NAMESPACE)


def exists(key: str) -> bool:
    store = _store()
    return store is not None and store._internal_kv_exists(key, namespace=_NAMESPACE)


def count(prefix: str) -> int:
    """How many notes have a key that begins with this."""
    store = _store()
    return 0 if store is None else len(store._internal_kv_list(prefix, namespace=_NAMESPACE))


def remove(key: str) -> None:
    if (store := _store()) is not None:
        store._internal_kv_del(key, namespace=_NAMESPACE)


def remove_all(prefix: str) -> None:
    """Removes the notes whose keys begin with this."""
    if (store := _store()) is not None:
        store._internal_kv_del(prefix, del_by_prefix=True, namespace=_NAMESPACE)


def _store() -> ModuleType | None:
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    from ray.experimental import internal_kv

    return internal_kv
