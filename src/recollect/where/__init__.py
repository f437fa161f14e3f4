"""One SQL subset for both tiers: parsed once, evaluated by numpy on a view, compiled to a Lance filter for a buffer.

    comparison      =  !=  <>  <  <=  >  >=  between … and …   in (…)
    logic           and  or  not  true  false
    missing         is null   is nan   (and `is not …`)
    text            like   ilike   [escape 'c']; % is any run of characters, _ one, \\ escapes unless told otherwise
    arithmetic      +  -  *  /  %  abs(x)
    length          length(x) of text, in characters, and of ragged fields
    fields          dotted paths; "quoted" or `quoted` where a name is a keyword; action[0], grid[1][2]
    built in        terminated  truncated  step  time  writer  seq
    of the episode  episode.id  .attempt  .status  .reward  .lesson and declared facts, as they were written

What is null makes a comparison neither true nor false, and only what is true is chosen. A comparison with NaN is false,
except `!=`. Whole numbers are compared exactly; arithmetic is that of float64, so dividing by zero gives an infinity or
NaN. A number written in the text is rounded to the float16 or float32 field that it is compared with, so that
`reward = 0.1` finds what was stored for 0.1. `time` is compared with ISO text (UTC unless it says otherwise) or with
nanoseconds since 1970. `ilike` compares what `lower` makes of both sides (design/0013).
"""

from recollect.where.episodes import Facts
from recollect.where.filter import Filter
from recollect.where.parse import parse
from recollect.where.table import Held, Table
from recollect.where.tree import Column

__all__ = ["Column", "Facts", "Filter", "Held", "Table", "parse"]
