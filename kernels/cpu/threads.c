// Threads that take what is there to be taken.
//
// With OpenMP a parallel loop ends when every thread has come to its end. Where another process has one of the cores,
// a thread that has not even begun holds all others up until it is scheduled again: milliseconds, hundreds of times a
// step. Here the caller takes items until none is left and then waits only for items that someone has begun. A helper that
// comes late finds nothing to do.
//
// A job is open while `open` holds its number, never 0 then. A helper counts itself in before it looks at the number,
// and the caller closes the job before it looks at the count; so either the helper sees it closed or the caller waits.
#include "threads.h"

#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>

#define MOST 256
#define SPINS 5000  // some 60 us of waiting before a helper sleeps: longer than what lies between two jobs of a step

static struct {
    Task task;
    const void *what;
    int64_t items, at_once;
    int helpers;  // those with a lower index take part
} job;
static _Alignas(64) atomic_uint open;
static _Alignas(64) atomic_llong next;
static _Alignas(64) atomic_int inside;
static _Alignas(64) atomic_int asleep;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER, one_job = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static int num_helpers;

static inline void pause_a_little(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void take_items(void) {
    for (;;) {
        int64_t from = atomic_fetch_add(&next, job.at_once);
        if (from >= job.items) return;
        int64_t to = from + job.at_once;
        job.task(job.what, from, to < job.items ? to : job.items);
    }
}

static void wait_for_job(unsigned done) {
    for (int i = 0; i < SPINS; i++) {
        unsigned now = atomic_load(&open);
        if (now && now != done) return;
        pause_a_little();
    }
    pthread_mutex_lock(&lock);
    atomic_fetch_add(&asleep, 1);
    for (unsigned now = atomic_load(&open); !now || now == done; now = atomic_load(&open)) pthread_cond_wait(&wake, &lock);
    atomic_fetch_sub(&asleep, 1);
    pthread_mutex_unlock(&lock);
}

static void *help(void *index) {
    for (unsigned done = 0;;) {
        wait_for_job(done);
        atomic_fetch_add(&inside, 1);
        unsigned now = atomic_load(&open);
        if (now && now != done) {
            if ((int)(intptr_t)index < job.helpers) take_items();
            done = now;
        }
        atomic_fetch_sub(&inside, 1);
    }
    return NULL;
}

int threads(void) {
    int wanted = omp_get_max_threads();
    return wanted < MOST ? wanted : MOST;
}

// A process that was forked has none of its parent's threads, nor do these wait for anything: it begins anew.
static void forget_helpers(void) {
    num_helpers = 0;
    atomic_store(&open, 0), atomic_store(&inside, 0), atomic_store(&asleep, 0);
    pthread_mutex_init(&lock, NULL), pthread_mutex_init(&one_job, NULL), pthread_cond_init(&wake, NULL);
}

static void need_helpers(int count) {
    static int told;
    if (!told) told = !pthread_atfork(NULL, NULL, forget_helpers);
    for (; num_helpers < count; num_helpers++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, help, (void *)(intptr_t)num_helpers)) return;
        pthread_detach(thread);
    }
}

void share(int64_t items, int64_t at_once, int worth, Task task, const void *what) {
    static unsigned last;
    int helpers = worth && items > at_once ? threads() - 1 : 0;
    if (helpers < 1 || pthread_mutex_trylock(&one_job)) {  // alone, or somebody else's job is being done
        task(what, 0, items);
        return;
    }
    need_helpers(helpers);
    job.task = task, job.what = what, job.items = items, job.at_once = at_once, job.helpers = helpers;
    atomic_store(&next, 0);
    last = last + 1 ? last + 1 : 1;
    atomic_store(&open, last);
    if (atomic_load(&asleep)) {
        pthread_mutex_lock(&lock);
        pthread_cond_broadcast(&wake);
        pthread_mutex_unlock(&lock);
    }
    take_items();
    atomic_store(&open, 0);
    for (int i = 0; atomic_load(&inside); i++) {
        pause_a_little();
        if (i > SPINS) sched_yield();  // whoever is inside may need this core
    }
    pthread_mutex_unlock(&one_job);
}
