import java.io.File;
import java.io.PrintStream;
import java.io.RandomAccessFile;
import java.security.MessageDigest;
import java.util.*;
import java.util.concurrent.*;
import java.util.concurrent.atomic.AtomicLong;

/** A heap that is filled and collected, pools, locks, timers, a file. */
public class Work {
    static String hex(MessageDigest d) { return HexFormat.of().formatHex(d.digest()); }

    /** Objects of all ages: some die at once, some live for a while, a tree is rebuilt all the time. */
    static long churn(int turns, int seed) {
        Random random = new Random(seed);
        TreeMap<Integer, byte[]> old = new TreeMap<>();
        long sum = 0;
        for (int i = 0; i < turns * 1000; i++) {
            byte[] young = new byte[200 + random.nextInt(2000)];
            young[i % 200] = (byte) i;
            old.put(random.nextInt(20000), young);
            if (old.size() > 15000) old.pollFirstEntry();
            byte[] one = old.ceilingEntry(0).getValue();
            sum = sum * 31 + one.length + one[i % 200];
        }
        return sum;
    }

    /** A file that is read and written in place. Not through a channel: the classes of those keep a socket open. */
    static String file(int turns) throws Exception {
        MessageDigest d = MessageDigest.getInstance("SHA-256");
        try (RandomAccessFile f = new RandomAccessFile("file", "rw")) {
            byte[] some = new byte[4096];
            f.setLength(1 << 20);
            for (int i = 0; i < turns * 100; i++) {
                f.seek((i * 7919L * 4096) % (1 << 20));
                f.readFully(some);
                some[i % 4096] += i;
                d.update(some);
                f.seek(f.getFilePointer() - some.length);
                f.write(some);
            }
        }
        return hex(d);
    }

    public static void main(String[] args) throws Exception {
        int turns = Integer.parseInt(args[0]);
        Map<String, Object> result = new ConcurrentSkipListMap<>();
        ExecutorService pool = Executors.newFixedThreadPool(6);
        List<Future<?>> jobs = new ArrayList<>();
        for (int n = 0; n < 3; n++) {
            int seed = n;
            jobs.add(pool.submit(() -> result.put("churn " + seed, churn(turns, seed))));
        }
        jobs.add(pool.submit(() -> result.put("file", file(turns))));
        BlockingQueue<Integer> queue = new ArrayBlockingQueue<>(10);
        jobs.add(pool.submit(() -> { for (int i = 0; i < turns * 500; i++) queue.put(i); queue.put(-1); return 0; }));
        jobs.add(pool.submit(() -> { long s = 0; for (int i; (i = queue.take()) >= 0; ) s += i; return result.put("queue", s); }));
        AtomicLong ticks = new AtomicLong();
        ScheduledExecutorService timer = Executors.newScheduledThreadPool(1);
        CountDownLatch ticked = new CountDownLatch(turns / 4);
        timer.scheduleAtFixedRate(() -> { ticks.incrementAndGet(); ticked.countDown(); }, 0, 10, TimeUnit.MILLISECONDS);
        new File("ready").createNewFile();
        for (Future<?> job : jobs) job.get();
        ticked.await();
        timer.shutdownNow();
        pool.shutdown();
        result.put("ticked", ticks.get() >= turns / 4);
        try (PrintStream out = new PrintStream("out")) { result.forEach((k, v) -> out.println(k + " " + v)); }
        System.exit(9);
    }
}
