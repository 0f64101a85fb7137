"""The reader of machine code: which loop it takes, and what it counts there."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent / "bench"))
from sass import INSTRUCTION, Instruction, Loop, hot_loop

# A loop that reads 2 × 16 bytes, with a branch around two instructions, after one that reads 4.
CODE = """
        /*0000*/                   LDG.E R2, desc[UR8][R8.64] ;       /* 0x000000040a024981 */
        /*0010*/              @!P0 BRA 0x0 ;                          /* 0x000000040a024981 */
        /*0020*/                   LDG.E.128 R4, desc[UR8][R8.64] ;   /* 0x000000040a024981 */
        /*0030*/                   LDG.E.128.CONSTANT R12, desc[UR8][R8.64+0x10] ;
        /*0040*/               @P1 BRA 0x70 ;
        /*0050*/                   FADD R4, -R4, R5 ;
        /*0060*/                   MUFU.EX2 R4, R4 ;
        /*0070*/                   FADD R6, R6, R4 ;
        /*0080*/              @!P0 BRA P2, 0x20 ;
        /*0090*/                   EXIT ;
"""


def code() -> list[Instruction]:
    return [Instruction(int(at, 16), *rest) for at, *rest in INSTRUCTION.findall(CODE)]


def test_the_widest_loop_by_its_shortest_way():
    assert len(code()) == 10
    assert hot_loop(code()) == Loop(instructions=5, read=32, width=16)


def test_code_without_a_loop_that_reads():
    assert hot_loop(code()[4:8]) is None
