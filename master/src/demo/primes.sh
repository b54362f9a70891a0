# Prints the primes up to a limit, or tests itself: a build for where there is no source to build.
primes() {
    n=2
    while [ "$n" -le "$1" ]; do
        d=2
        while [ $((d * d)) -le "$n" ] && [ $((n % d)) -ne 0 ]; do d=$((d + 1)); done
        [ $((d * d)) -gt "$n" ] && echo "$n"
        n=$((n + 1))
    done
}
if [ "$1" = --test ]; then
    [ "$(primes 30 | tr "\n" " ")" = "2 3 5 7 11 13 17 19 23 29 " ] && echo "test passed" && exit 0
    echo "test failed"
    exit 1
fi
primes "$1"
