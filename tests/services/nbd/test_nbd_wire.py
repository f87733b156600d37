"""Numbers and structs, each declared in two ways."""

from __future__ import annotations

from contextlib import suppress
from struct import Struct

import construct
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapctl.services.nbd import wire


@pytest.mark.parametrize(("declared", "hot"), wire.HOT_STRUCTS, ids=lambda value: getattr(value, "format", None))
@given(data=st.data())
def test_both_declarations_read_and_build_the_same(declared: construct.Struct, hot: Struct, data: st.DataObject):
    assert declared.sizeof() == hot.size
    names = [field.name for field in declared.subcons]
    values = [data.draw(st.integers(0, (1 << (8 * field.sizeof())) - 1)) for field in declared.subcons]
    built = declared.build(dict(zip(names, values, strict=True)))
    assert built == hot.pack(*values)
    assert [declared.parse(built)[name] for name in names] == list(hot.unpack(built)) == values


def test_no_two_numbers_of_one_kind_are_the_same():
    for prefix in ("OPT_", "REP_", "INFO_", "CMD_FLAG_", "REPLY_TYPE_", "STATE_"):
        found = [value for name, value in vars(wire).items() if name.startswith(prefix)]
        assert len(found) == len(set(found)) > 1


@given(st.binary(max_size=64))
def test_data_of_an_option_is_read_or_refused(data: bytes):
    for parse in (wire.parse_info_request, wire.parse_context_query, wire.parse_string):
        with suppress(wire.BadOption):
            parse(data)
