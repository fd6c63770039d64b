// attention.c once more, for pages of codes with scales; a file of its own so that both are compiled at one time.
#define CODES 1
#define attention attention_codes
#include "attention.c"
