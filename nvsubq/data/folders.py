"""What folders of files share: the check of `root`, listings, and splits of whole groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from nvsubq.data.errors import DataError
from nvsubq.data.sampling import generator


def checked_root(root: str | Path) -> Path:
    """`root` as a path.

    Raises:
        DataError: it is not a folder.
    """
    path = Path(root).expanduser()
    if not path.is_dir():
        raise DataError(
            f"`root` (={root}) is not a folder." if path.exists() else f"`root` (={root}) does not exist."
        )
    return path


def entries(folder: Path, want: Callable[[Path], bool], what: str) -> list[Path]:
    """Everything visible in a folder, sorted by name; names that begin with a dot do not count.

    Args:
        folder: to list.
        want: what each entry must satisfy.
        what: its name in the plural, for errors.

    Raises:
        DataError: the folder is missing, empty, or holds anything else.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.")
    found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    other = [path.name for path in found if not want(path)]
    if other:
        raise DataError(f"{folder} holds {listed(other)}; only {what} are allowed there.")
    if not found:
        raise DataError(f"{folder} is empty; it must hold {what}.")
    return found


def listed(names: Iterable[str], most: int = 5) -> str:
    """Names in one line, the first few of many.

    Example:
        >>> listed("abcd", most=2)
        'a, b and 2 more'
    """
    names = list(names)
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def split_groups(groups: Sequence[str], seed: int, *, val: float, test: float) -> dict[str, list[int]]:
    """Indices of each split; members of one group stay together.

    Args:
        groups: the group of each item; at least 3 different ones.
        seed: the split is a function of it and of `groups`.
        val, test: shares of the groups; rounded, at least one each.

    Example:
        >>> split_groups(["a", "a", "b", "c"], 0, val=0.15, test=0.15).keys()
        dict_keys(['train', 'val', 'test'])
    """
    names = sorted(set(groups))
    order = [names[i] for i in generator(seed, "split").permutation(len(names))]
    n_val, n_test = (max(1, round(share * len(names))) for share in (val, test))
    chosen = {"train": order[n_val + n_test :], "val": order[:n_val], "test": order[n_val : n_val + n_test]}
    return {
        split: [i for i, group in enumerate(groups) if group in members] for split, members in chosen.items()
    }
