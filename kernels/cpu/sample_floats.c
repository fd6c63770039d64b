// sample.c once more, for logits in fp32 beside elements of another type: `draw_floats` takes adjusted ones.
#undef ELEMENT_BF16
#define draw draw_floats
#include "sample.c"
