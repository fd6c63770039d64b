// Work shared by threads that nobody waits for in vain; threads.c says how.
#include <stdint.h>

// Does items [from, to). Runs on several threads at once, each with items of its own.
typedef void (*Task)(const void *what, int64_t from, int64_t to);

// Have `task` done for items [0, items), `at_once` at a time, by as many threads as torch.set_num_threads says; returns
// when all are done. The caller takes part, and does everything itself where sharing is not `worth` it.
void share(int64_t items, int64_t at_once, int worth, Task task, const void *what);

// How many threads that may be.
int threads(void);
