//! The bid on the spot market: the average price of 24 hours multiplied by a factor, but at most the maximum.

use super::client::Client;
use super::error::{CallError, call_error};
use crate::clock;
use crate::config::hosts::Spot;
use aws_sdk_ec2::primitives::DateTime;
use aws_sdk_ec2::types::InstanceType;

/// How far back prices are averaged, seconds.
const WINDOW: i64 = 24 * 3_600;
/// Largest number of pages of prices that are read. A day of one type has a few dozen prices in each zone.
const PAGES: usize = 20;

/// The market in the last 24 hours.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Market {
    /// Average of all prices, USD an hour.
    pub average: Option<f64>,
    /// The newest price, USD per hour; if no zone was named, that of the most expensive zone.
    pub newest: Option<f64>,
}

/// The highest price to bid, as AWS wants it written; none for AWS's own limit, which is the price on demand.
pub fn bid(spot: &Spot, market: &Market) -> Option<String> {
    let most = spot.max_price;
    let offer = match (spot.multiplier, market.average) {
        (Some(multiplier), Some(average)) => {
            let offer = average * multiplier;
            Some(most.map_or(offer, |most| offer.min(most)))
        }
        // Without a price of the last day, only the maximum is known.
        (Some(_), None) | (None, _) => most,
    };
    offer.map(written)
}

/// A price without trailing zeros.
fn written(price: f64) -> String {
    let text = format!("{price:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The average and the newest of some prices, each with its time in seconds and its zone.
pub fn market(prices: &[(i64, String, f64)]) -> Market {
    if prices.is_empty() {
        return Market::default();
    }
    let sum: f64 = prices.iter().map(|(_, _, price)| price).sum();
    let mut newest: Vec<&(i64, String, f64)> = Vec::new();
    for entry in prices {
        match newest.iter_mut().find(|known| known.1 == entry.1) {
            Some(known) if known.0 < entry.0 => *known = entry,
            Some(_) => {}
            None => newest.push(entry),
        }
    }
    Market {
        #[expect(clippy::cast_precision_loss, reason = "a few thousand prices at most")]
        average: Some(sum / prices.len() as f64),
        newest: newest.iter().map(|(_, _, price)| *price).reduce(f64::max),
    }
}

/// Requests the prices of the last 24 hours for a type, in a zone or in the whole region.
pub async fn look(client: &Client, kind: &str, zone: Option<&str>, platform: &str) -> Result<Market, CallError> {
    let now = i64::try_from(clock::now().0 / 1_000).unwrap_or(i64::MAX);
    let call = client
        .ec2
        .describe_spot_price_history()
        .instance_types(InstanceType::from(kind))
        .product_descriptions(platform)
        .start_time(DateTime::from_secs(now - WINDOW))
        .end_time(DateTime::from_secs(now))
        .set_availability_zone(zone.map(str::to_owned));
    let mut pages = call.into_paginator().send();
    let mut prices = Vec::new();
    for _ in 0..PAGES {
        let Some(page) = pages.next().await else { break };
        let page = page.map_err(|e| call_error("query the spot prices", &e))?;
        for entry in page.spot_price_history.unwrap_or_default() {
            let price = entry.spot_price().and_then(|p| p.parse::<f64>().ok()).filter(|p| p.is_finite());
            if let Some(price) = price {
                let zone = entry.availability_zone().unwrap_or_default().to_owned();
                prices.push((entry.timestamp().map_or(0, DateTime::secs), zone, price));
            }
        }
    }
    Ok(market(&prices))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Maximum, factor, the day's prices, and what is offered.
    #[test]
    fn bids() {
        let spot = |max_price, multiplier| Spot { max_price, multiplier, on_demand_fallback: false };
        let day = |prices: &[f64]| -> Vec<(i64, String, f64)> {
            prices.iter().enumerate().map(|(n, p)| (i64::try_from(n).unwrap(), "b".to_owned(), *p)).collect()
        };
        type Row = (Option<f64>, Option<f64>, &'static [f64], Option<&'static str>);
        let table: &[Row] = &[
            // The manual's example: averaged, times 1.15, below 0.09.
            (Some(0.09), Some(1.15), &[0.04, 0.05, 0.06], Some("0.0575")),
            // Never above the maximum.
            (Some(0.09), Some(1.15), &[0.08, 0.09], Some("0.09")),
            (Some(0.09), Some(1.15), &[3.0], Some("0.09")),
            // Without a factor: the maximum, whatever the market does.
            (Some(0.09), None, &[0.04], Some("0.09")),
            (Some(0.5), None, &[], Some("0.5")),
            // Without a price there is nothing to multiply.
            (Some(0.09), Some(1.15), &[], Some("0.09")),
            (None, Some(1.15), &[], None),
            // Without a maximum: the product alone, or AWS's own limit.
            (None, Some(2.0), &[0.25, 0.75], Some("1")),
            (None, None, &[0.04], None),
            // A factor below 1 is an offer below the average.
            (Some(1.0), Some(0.5), &[0.05], Some("0.025")),
            // Digits that AWS does not take are cut.
            (None, Some(1.0), &[0.1, 0.2, 0.2], Some("0.166667")),
        ];
        for (max, factor, prices, expected) in table {
            let offered = bid(&spot(*max, *factor), &market(&day(prices)));
            assert_eq!(offered.as_deref(), *expected, "{max:?} × {factor:?} of {prices:?}");
        }
    }

    #[test]
    fn the_newest_price_is_each_zones_and_the_dearest_counts() {
        let at = |when, zone: &str, price| (when, zone.to_owned(), price);
        let prices = [at(3, "a", 0.02), at(1, "a", 0.9), at(2, "b", 0.05), at(1, "b", 0.01)];
        assert_eq!(market(&prices).newest, Some(0.05));
        assert_eq!(market(&[]), Market::default());
    }
}
